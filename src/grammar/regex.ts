/**
 * Regular expressions as grammars.
 *
 * @module
 */

import { CharSet } from "./char_set.ts";
import { either, type Expr, newRule, ref, repeat, sequence } from "./expr.ts";
import { parseRegex, type Regex } from "./regex_parser.ts";

/** How a character of the expression's subject is written. */
export type Encode = (set: CharSet) => Expr;

/**
 * The same encoding, but for sets that take more than a byte as a rule, one for
 * all places: repeated, it would take many states.
 */
export function shared(encode: Encode): Encode {
  const known = new Map<string, Expr>();
  return (set) => {
    const key = set.ranges.join();
    let expr = known.get(key);
    if (expr === undefined) {
      expr = encode(set);
      if (expr.kind !== "byte") expr = ref(newRule("a character", expr));
      known.set(key, expr);
    }
    return expr;
  };
}

function convert(regex: Regex, encode: Encode): Expr {
  switch (regex.kind) {
    case "set":
      return encode(regex.set);
    case "sequence":
      return sequence(...regex.items.map((item) => convert(item, encode)));
    case "either":
      return either(...regex.items.map((item) => convert(item, encode)));
    case "repeat":
      return repeat(convert(regex.item, encode), regex.min, regex.max);
  }
}

/**
 * All texts that a regular expression matches as a whole.
 *
 * @throws {GrammarError} When it uses what is not supported, by name.
 */
export function wholeMatch(source: string): Expr {
  const encode = shared((set) => set.toExpr());
  return either(
    ...parseRegex(source).map(({ regex }) => convert(regex, encode)),
  );
}

/**
 * All texts in which a regular expression is found, as JSON schema's `pattern`
 * is meant.
 *
 * @throws {GrammarError} When it uses what is not supported, by name.
 */
export function searchMatch(source: string, encode: Encode): Expr {
  const anything = repeat(encode(CharSet.all), 0, Infinity);
  return either(
    ...parseRegex(source).map(({ start, end, regex }) =>
      sequence(
        ...start ? [] : [anything],
        convert(regex, encode),
        ...end ? [] : [anything],
      )
    ),
  );
}
