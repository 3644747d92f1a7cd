/**
 * Reads the part of JavaScript's regular expressions that describes plain
 * strings: no looking around, no references to groups, no word boundaries.
 *
 * @module
 */

import { GrammarError, unsupported } from "./error.ts";
import { CharSet } from "./char_set.ts";

/** A regular expression without anchors. */
export type Regex =
  | { readonly kind: "set"; readonly set: CharSet }
  | { readonly kind: "sequence"; readonly items: readonly Regex[] }
  | { readonly kind: "either"; readonly items: readonly Regex[] }
  | {
    readonly kind: "repeat";
    readonly item: Regex;
    readonly min: number;
    readonly max: number;
  };

/** One of the alternatives at the top. */
export interface AnchoredRegex {
  /** Begins with `^`. */
  readonly start: boolean;
  /** Ends with `$`. */
  readonly end: boolean;
  readonly regex: Regex;
}

/** Groups within groups at most. */
const MAX_DEPTH = 100;

const DIGITS = CharSet.of([0x30, 0x39]);
const WORD = DIGITS.union(CharSet.of([0x41, 0x5a], [0x61, 0x7a], [0x5f, 0x5f]));
const SPACE = CharSet.from(
  "\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff",
).union(CharSet.of([0x2000, 0x200a]));
const CLASSES: Readonly<Record<string, CharSet>> = {
  d: DIGITS,
  D: DIGITS.complement(),
  w: WORD,
  W: WORD.complement(),
  s: SPACE,
  S: SPACE.complement(),
};
const DOT = CharSet.from("\n\r\u2028\u2029").complement();
const CONTROLS: Readonly<Record<string, string>> = {
  t: "\t",
  n: "\n",
  v: "\v",
  f: "\f",
  r: "\r",
  "0": "\0",
};

class Parser {
  readonly #source: string;
  #at = 0;
  #depth = 0;

  constructor(source: string) {
    this.#source = source;
  }

  parse(): AnchoredRegex[] {
    const alternatives: AnchoredRegex[] = [];
    do {
      const start = this.#take("^");
      const regex = this.#sequence();
      alternatives.push({ start, end: this.#take("$"), regex });
    } while (this.#take("|"));
    if (this.#at < this.#source.length) {
      // A valid expression goes on here only after an anchor.
      throw this.#refuse("an anchor in the middle");
    }
    return alternatives;
  }

  #refuse(what: string): GrammarError {
    return unsupported(what, `character ${this.#at}`);
  }

  #peek(text: string): boolean {
    return this.#source.startsWith(text, this.#at);
  }

  #take(text: string): boolean {
    if (!this.#peek(text)) return false;
    this.#at += text.length;
    return true;
  }

  #match(pattern: RegExp): RegExpExecArray | null {
    pattern.lastIndex = this.#at;
    const match = pattern.exec(this.#source);
    if (match) this.#at += match[0].length;
    return match;
  }

  #either(): Regex {
    const items = [this.#sequence()];
    while (this.#take("|")) items.push(this.#sequence());
    return items.length === 1 ? items[0] : { kind: "either", items };
  }

  #sequence(): Regex {
    const items: Regex[] = [];
    while (this.#at < this.#source.length && !this.#match(/(?=[|)$])/y)) {
      items.push(this.#quantified());
    }
    return items.length === 1 ? items[0] : { kind: "sequence", items };
  }

  #quantified(): Regex {
    const item = this.#atom();
    const found = this.#match(/(?:([*+?])|\{(\d+)(,?)(\d*)\})\??/y);
    if (!found) return item;
    const [, sign, low, comma, high] = found;
    if (sign) {
      const min = sign === "+" ? 1 : 0;
      return { kind: "repeat", item, min, max: sign === "?" ? 1 : Infinity };
    }
    const min = Number(low);
    const max = high ? Number(high) : comma ? Infinity : min;
    return { kind: "repeat", item, min, max };
  }

  #atom(): Regex {
    if (this.#peek("^")) throw this.#refuse("an anchor in the middle");
    if (this.#peek("(")) return this.#group();
    if (this.#take(".")) return { kind: "set", set: DOT };
    if (this.#take("[")) return { kind: "set", set: this.#class() };
    if (this.#take("\\")) return { kind: "set", set: this.#escape(false) };
    const char = String.fromCodePoint(this.#source.codePointAt(this.#at)!);
    this.#at += char.length;
    return { kind: "set", set: CharSet.from(char) };
  }

  #group(): Regex {
    if (this.#match(/(?=\(\?<?[=!])/y)) throw this.#refuse("looking around");
    if (!this.#match(/\(\?:|\(\?<[^>]*>|\((?!\?)/y)) {
      throw this.#refuse("flags within the expression");
    }
    if (++this.#depth > MAX_DEPTH) {
      throw this.#refuse(`groups within more than ${MAX_DEPTH} others`);
    }
    const regex = this.#either();
    if (!this.#take(")")) throw this.#refuse("an anchor in the middle");
    this.#depth--;
    return regex;
  }

  #class(): CharSet {
    const negated = this.#take("^");
    let set = CharSet.of();
    while (!this.#take("]")) {
      const low = this.#classAtom();
      const ranged = this.#peek("-") && !this.#peek("-]");
      if (!ranged) {
        set = set.union(low);
        continue;
      }
      this.#at++;
      const high = this.#classAtom();
      set = set.union(CharSet.of([low.ranges[0][0], high.ranges[0][0]]));
    }
    return negated ? set.complement() : set;
  }

  #classAtom(): CharSet {
    if (this.#take("\\")) return this.#escape(true);
    const char = String.fromCodePoint(this.#source.codePointAt(this.#at)!);
    this.#at += char.length;
    return CharSet.from(char);
  }

  #escape(inClass: boolean): CharSet {
    const letter = this.#source[this.#at];
    if (/[pP]/.test(letter)) throw this.#refuse(`\\${letter}{}`);
    if (/[1-9k]/.test(letter)) throw this.#refuse("a reference to a group");
    if (letter === "B" || letter === "b" && !inClass) {
      throw this.#refuse(`\\${letter}, a word boundary`);
    }
    const hex = this.#match(
      /u\{([0-9a-f]+)\}|u(d[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2})|u([0-9a-f]{4})|x([0-9a-f]{2})/iy,
    );
    if (hex) {
      const pair = hex[2]?.split("\\u").map((unit) => parseInt(unit, 16));
      const point = pair
        ? String.fromCharCode(...pair).codePointAt(0)!
        : parseInt(hex[1] ?? hex[3] ?? hex[4], 16);
      if (point >= 0xd800 && point <= 0xdfff) {
        throw this.#refuse("half a surrogate pair");
      }
      return CharSet.of([point, point]);
    }
    const control = this.#match(/c([a-z])/iy);
    if (control) {
      const point = control[1].charCodeAt(0) & 31;
      return CharSet.of([point, point]);
    }
    this.#at++;
    if (letter === "b") return CharSet.from("\b");
    return CLASSES[letter] ?? CharSet.from(CONTROLS[letter] ?? letter);
  }
}

/**
 * Reads a regular expression, which has the syntax of the `u` flag.
 *
 * @throws {GrammarError} When it is no regular expression, or uses what is not
 * supported, by name.
 */
export function parseRegex(source: string): AnchoredRegex[] {
  if (!source.isWellFormed()) {
    throw new GrammarError("has half a surrogate pair");
  }
  try {
    new RegExp(source, "u");
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new GrammarError(`is no regular expression: ${why}`);
  }
  return new Parser(source).parse();
}
