/**
 * Objects of a JSON schema: members in the order in which the schema declares
 * them, those that are not required may be left out, others come after.
 *
 * @module
 */

import {
  either,
  empty,
  type Expr,
  newRule,
  ref,
  repeat,
  sequence,
  text,
} from "./expr.ts";
import { COLON, COMMA, keyExcept } from "./json_text.ts";

/** A property that the schema names. */
export interface Member {
  readonly name: string;
  readonly required: boolean;
  readonly value: Expr;
}

/**
 * An object.
 *
 * @param members The properties that have a name.
 * @param others The value of any other property, when there may be such.
 */
export function objectOf(
  members: readonly Member[],
  others: Expr | undefined,
): Expr {
  // What may follow when no member has been written, and when one has. Rules,
  // because both lead to the same rest.
  let none: Expr = empty;
  let some: Expr = empty;
  if (others) {
    const member = sequence(
      keyExcept(members.map(({ name }) => name)),
      COLON,
      others,
    );
    some = repeat(sequence(COMMA, member), 0, Infinity);
    none = either(empty, sequence(member, some));
  }
  for (const { name, required, value } of members.toReversed()) {
    const key = text(JSON.stringify(name));
    const member = newRule(
      `the property ${JSON.stringify(name)}`,
      sequence(key, COLON, value),
    );
    const rest = ref(newRule("further members", some));
    const skip = required ? [] : [none];
    const skipLater = required ? [] : [rest];
    none = ref(
      newRule("members", either(sequence(ref(member), rest), ...skip)),
    );
    some = either(sequence(COMMA, ref(member), rest), ...skipLater);
  }
  return sequence(text("{"), none, text("}"));
}
