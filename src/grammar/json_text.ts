/**
 * The grammar of JSON itself: white space, strings, numbers, any value.
 *
 * What is written is compact, but for one space that may follow a colon or a
 * comma. So an output ends: it cannot go on with white space for ever.
 *
 * @module
 */

import { CharSet } from "./char_set.ts";
import {
  byte,
  either,
  type Expr,
  newRule,
  nothing,
  optional,
  ref,
  repeat,
  sequence,
  text,
} from "./expr.ts";

/** One place of a literal. */
const char = (...chars: string[]): Expr =>
  CharSet.from(chars.join("")).toExpr();

export const DIGIT: Expr = byte([0x30, 0x39]);
const HEX = byte([0x30, 0x39], [0x41, 0x46], [0x61, 0x66]);

/** An optional space. */
export const SPACE: Expr = optional(text(" "));
/** A comma between two members or items. */
export const COMMA: Expr = sequence(text(","), SPACE);
/** A colon after a key. */
export const COLON: Expr = sequence(text(":"), SPACE);

/** What a string must escape. */
const ESCAPED = CharSet.of([0, 0x1f]).union(CharSet.from('"\\'));
const SHORT: Readonly<Record<string, string>> = {
  "\b": "b",
  "\f": "f",
  "\n": "n",
  "\r": "r",
  "\t": "t",
  '"': '"',
  "\\": "\\",
};

/**
 * One of the characters, in the one form that `JSON.stringify` gives it: two
 * strings differ when what is written for them does.
 */
export function plainChar(set: CharSet): Expr {
  const forms: Expr[] = [];
  const raw = set.minus(ESCAPED);
  if (!raw.isEmpty) forms.push(raw.toExpr());
  for (const [low, high] of set.intersect(ESCAPED).ranges) {
    for (let point = low; point <= high; point++) {
      forms.push(text(JSON.stringify(String.fromCharCode(point)).slice(1, -1)));
    }
  }
  return either(...forms);
}

/**
 * Any one character (code point) of a string in any of its forms. A surrogate
 * pair counts as one; half of one, which is no character, has no form.
 */
const CHAR = newRule(
  "a character",
  either(
    ESCAPED.complement().toExpr(),
    sequence(text("\\"), char(...Object.values(SHORT), "/")),
    sequence(
      text("\\u"),
      either(
        sequence(either(char("0123456789abcefABCEF")), HEX, HEX, HEX),
        sequence(char("dD"), char("01234567"), HEX, HEX),
        sequence(
          sequence(char("dD"), char("89abAB"), HEX, HEX),
          text("\\u"),
          sequence(char("dD"), char("cdefCDEF"), HEX, HEX),
        ),
      ),
    ),
  ),
);

/** A string of so many characters (code points). */
export function stringOf(min: number, max: number): Expr {
  return sequence(text('"'), repeat(ref(CHAR), min, max), text('"'));
}

/** A string with this content, as {@linkcode plainChar} writes it. */
export function quoted(content: Expr): Expr {
  return sequence(text('"'), content, text('"'));
}

/** Digits of an integer at most: it fits in 64 bits. */
export const INTEGER_DIGITS = 18;

const MAGNITUDE = either(
  text("0"),
  sequence(byte([0x31, 0x39]), repeat(DIGIT, 0, INTEGER_DIGITS - 1)),
);

/** An integer without bounds: of at most 18 digits, never -0. */
export const INTEGER: Expr = either(
  MAGNITUDE,
  sequence(
    text("-"),
    byte([0x31, 0x39]),
    repeat(DIGIT, 0, INTEGER_DIGITS - 1),
  ),
);

/** A number without bounds: at most 18 digits before and after the point, and finite. */
export const NUMBER: Expr = sequence(
  optional(text("-")),
  MAGNITUDE,
  optional(sequence(text("."), repeat(DIGIT, 1, INTEGER_DIGITS))),
  optional(
    sequence(char("eE"), optional(char("+-")), repeat(DIGIT, 1, 2)),
  ),
);

/** `open`, items with commas between them, `close`. */
function list(open: string, item: Expr, close: string): Expr {
  const items = sequence(
    item,
    repeat(sequence(COMMA, item), 0, Infinity),
  );
  return sequence(text(open), optional(items), text(close));
}

const VALUE = newRule("any value");
const STRING = stringOf(0, Infinity);
VALUE.body = either(
  STRING,
  NUMBER,
  text("true"),
  text("false"),
  text("null"),
  list("[", ref(VALUE), "]"),
  list("{", sequence(STRING, COLON, ref(VALUE)), "}"),
);

/** Any JSON value. */
export const ANY: Expr = ref(VALUE);

/** Names by their characters. */
interface Trie {
  /** Whether a name ends here. */
  end: boolean;
  readonly next: Map<string, Trie>;
}

function trieOf(names: Iterable<string>): Trie {
  const root: Trie = { end: false, next: new Map() };
  for (const name of names) {
    let at = root;
    for (const point of name) {
      let next = at.next.get(point);
      if (!next) at.next.set(point, next = { end: false, next: new Map() });
      at = next;
    }
    at.end = true;
  }
  return root;
}

const ASCII = CharSet.of([0x20, 0x7f]).minus(ESCAPED);
const PLAIN = newRule("a character", plainChar(CharSet.all));
const PAST_ASCII = newRule("a character", plainChar(ASCII.complement()));

/** A key that is none of `names`. */
export function keyExcept(names: Iterable<string>): Expr {
  const other = repeat(ref(PLAIN), 0, Infinity);
  const from = ({ end, next }: Trie): Expr => {
    const taken = CharSet.from([...next.keys()].join(""));
    const free = ASCII.minus(taken);
    const rest = taken.minus(ASCII);
    const ways = [
      end ? nothing : text(""),
      sequence(free.toExpr(), other),
      sequence(
        rest.isEmpty
          ? ref(PAST_ASCII)
          : plainChar(ASCII.complement().minus(rest)),
        other,
      ),
    ];
    for (const [point, child] of next) {
      // A rule each: names may be longer than expressions may be deep.
      const rule = newRule("a key", from(child));
      ways.push(sequence(plainChar(CharSet.from(point)), ref(rule)));
    }
    return either(...ways);
  };
  return quoted(from(trieOf(names)));
}
