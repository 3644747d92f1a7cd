/**
 * Grammars over bytes, as expressions: what JSON schemas, regular expressions
 * and choices are translated into.
 *
 * @module
 */

/** Bytes from the first to the second, both included. */
export type ByteRange = readonly [low: number, high: number];

/** A set of byte strings. */
export type Expr =
  | { readonly kind: "byte"; readonly ranges: readonly ByteRange[] }
  | { readonly kind: "sequence"; readonly items: readonly Expr[] }
  | { readonly kind: "either"; readonly items: readonly Expr[] }
  | {
    readonly kind: "repeat";
    readonly item: Expr;
    readonly min: number;
    readonly max: number;
  }
  | { readonly kind: "literals"; readonly texts: readonly Uint8Array[] }
  | { readonly kind: "rule"; readonly rule: Rule };

/** A named expression, which may contain itself. */
export interface Rule {
  /** For errors: where it came from. */
  readonly name: string;
  /** Set once, after the rules that it refers to exist. */
  body: Expr;
}

const encoder = new TextEncoder();

/** Exactly one byte, of these ranges. */
export function byte(...ranges: readonly ByteRange[]): Expr {
  return { kind: "byte", ranges };
}

/** One after another; of nothing: the empty string. */
export function sequence(...items: readonly Expr[]): Expr {
  return items.length === 1 ? items[0] : { kind: "sequence", items };
}

/** One of them; of nothing: no string at all. */
export function either(...items: readonly Expr[]): Expr {
  return items.length === 1 ? items[0] : { kind: "either", items };
}

/** `item` at least `min` and at most `max` times; `max` may be Infinity. */
export function repeat(item: Expr, min: number, max: number): Expr {
  return { kind: "repeat", item, min, max };
}

/** `item` or nothing. */
export function optional(item: Expr): Expr {
  return repeat(item, 0, 1);
}

/** The UTF-8 of a text. */
export function text(value: string): Expr {
  return literals([value]);
}

/** One of the texts, in UTF-8. */
export function literals(values: readonly string[]): Expr {
  return {
    kind: "literals",
    texts: values.map((value) => encoder.encode(value)),
  };
}

/** A reference to a rule. */
export function ref(rule: Rule): Expr {
  return { kind: "rule", rule };
}

/** A rule; one that contains itself is made of `empty` first. */
export function newRule(name: string, body: Expr = empty): Rule {
  return { name, body };
}

/** The empty string. */
export const empty: Expr = sequence();

/** No string. */
export const nothing: Expr = either();
