/**
 * Arrays of a JSON schema.
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
import { COMMA } from "./json_text.ts";

/** What an array must be. */
export interface ArrayShape {
  /** The first items, one by one. */
  readonly prefix: readonly Expr[];
  /** Each further item, when there may be such. */
  readonly rest: Expr | undefined;
  readonly min: number;
  /** May be Infinity. */
  readonly max: number;
}

/** An array, with between `min` and `max` items. */
export function arrayOf({ prefix, rest, min, max }: ArrayShape): Expr {
  const many = prefix.length;
  // What may follow after so many items; built from the end.
  let after: Expr = empty;
  if (rest && max > many) {
    const item = sequence(...many > 0 ? [COMMA] : [], rest);
    const low = Math.max(min - many, 0);
    const high = max - many;
    // The first of all has no comma before it.
    after = many > 0 ? repeat(item, low, high) : either(
      ...low === 0 ? [empty] : [],
      sequence(
        rest,
        repeat(sequence(COMMA, rest), Math.max(low - 1, 0), high - 1),
      ),
    );
  }
  for (let i = Math.min(many, max) - 1; i >= 0; i--) {
    const item = sequence(...i > 0 ? [COMMA] : [], prefix[i], after);
    const rule = newRule("items", i >= min ? either(item, empty) : item);
    after = ref(rule);
  }
  return sequence(text("["), after, text("]"));
}
