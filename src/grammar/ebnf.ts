/**
 * Grammars in EBNF, in the dialect of xgrammar, before xgrammar sees them: what
 * it would accept and not enforce is rewritten or refused.
 *
 * @module
 */

import { type CharRange, CharSet } from "./char_set.ts";
import { GrammarError, unsupported } from "./error.ts";
import type { Expr } from "./expr.ts";

/** Repetitions of one element at most. */
const MAX_REPEAT = 1000;
/**
 * Bytes of literals, and classes with their repetitions, at most. Compiling
 * walks through the vocabulary once for each, and cannot be interrupted.
 */
const MAX_LITERALS = 20_000;
const MAX_CLASSES = 200;
/** Repetitions beyond these share what has been compiled. */
const UNROLLED = 30;

const TOKEN =
  /[ \t\r\n]+|#[^\r\n]*|"(?:[^"\\\r\n]|\\.)*"|\[(?:[^\]\\\r\n]|\\.)*\]|[A-Za-z_.-][\w.-]*|[+-]?\d+|::=|\(=|[()|*+?{},=]/uy;

const ESCAPES: Readonly<Record<string, number>> = {
  a: 7,
  b: 8,
  t: 9,
  n: 10,
  v: 11,
  f: 12,
  r: 13,
  e: 27,
  "0": 0,
};

/** The characters of a class `[…]`, and whether it has others than ASCII. */
function readClass(token: string, where: string) {
  const negated = token.startsWith("[^");
  const body = token.slice(negated ? 2 : 1, -1);
  const ranges: CharRange[] = [];
  const atoms: { point: number; dash: boolean }[] = [];
  const atom = /\\x([0-9a-f]+)|\\u([0-9a-f]{4})|\\U([0-9a-f]{8})|\\(.)|(.)/iuy;
  for (let found = atom.exec(body); found; found = atom.exec(body)) {
    const [, x, u, U, escaped, plain] = found;
    const hex = x ?? u ?? U;
    if (escaped && /[a-z0-9]/i.test(escaped) && !(escaped in ESCAPES)) {
      throw unsupported(`\\${escaped} in a class`, where);
    }
    const point = hex
      ? parseInt(hex, 16)
      : ESCAPES[escaped] ?? (escaped ?? plain).codePointAt(0)!;
    if (point > 0x10ffff || point >= 0xd800 && point <= 0xdfff) {
      throw unsupported("a class with what is no character", where);
    }
    atoms.push({ point, dash: plain === "-" });
  }
  for (let i = 0; i < atoms.length; i++) {
    const { point } = atoms[i];
    const ranged = atoms[i + 1]?.dash && i + 2 < atoms.length;
    const last = ranged ? atoms[i += 2].point : point;
    if (last < point) throw unsupported("a range that runs backwards", where);
    ranges.push([point, last]);
  }
  const set = CharSet.of(...ranges);
  return {
    set: negated ? set.complement() : set,
    ascii: ranges.every(([, high]) => high < 0x80),
  };
}

/**
 * Bytes for xgrammar: it takes the members of a class for bytes, but a class of
 * one member for a character; hence each is written twice.
 */
function writeBytes(expr: Expr): string {
  switch (expr.kind) {
    case "byte": {
      const hex = (value: number) => `\\x${value.toString(16)}`;
      const members = expr.ranges.map(([low, high]) =>
        low === high ? hex(low).repeat(2) : `${hex(low)}-${hex(high)}`
      );
      return `[${members.join("")}]`;
    }
    case "sequence":
      return expr.items.map(writeBytes).join(" ");
    case "either":
      return expr.items.map(writeBytes).join(" | ");
    default:
      throw new Error(`no character has a ${expr.kind}`);
  }
}

/**
 * Checks a grammar and returns it in the form that xgrammar enforces. Whether
 * its rules are well-formed and defined is left to xgrammar.
 *
 * @throws {GrammarError} When it has what cannot be enforced, by line.
 */
export function checkEbnf(source: string): string {
  if (!source.isWellFormed() || source.includes("\0")) {
    throw new GrammarError("has a character that is none");
  }
  const parts: string[] = [];
  let line = 1;
  let literals = 0;
  let classes = 0;
  let lastClass = false;
  TOKEN.lastIndex = 0;
  for (let at = 0; at < source.length; at = TOKEN.lastIndex) {
    const where = `line ${line}`;
    const token = TOKEN.exec(source)?.[0];
    if (token === undefined) {
      throw new GrammarError(
        `has ${
          JSON.stringify(source[at])
        } at ${where}, where it has no meaning`,
      );
    }
    const begins = token[0];
    if (/[\s#]/.test(begins)) {
      line += token.split("\n").length - 1;
      parts.push(token);
      continue;
    }
    if (token === "(=") throw unsupported("looking ahead, (=,", where);
    if (token === "TagDispatch") throw unsupported("TagDispatch", where);
    let written = token;
    if (begins === "[") {
      const { set, ascii } = readClass(token, where);
      if (set.isEmpty) throw unsupported("a class of no character", where);
      if (!ascii) written = `(${writeBytes(set.toExpr())})`;
      classes++;
    } else if (begins === '"') {
      literals += token.length - 2;
    } else if (/^[+-]?\d/.test(token)) {
      const count = Number(token);
      if (count > MAX_REPEAT) {
        throw unsupported(`a repetition of more than ${MAX_REPEAT}`, where);
      }
      if (lastClass) classes += Math.min(count, UNROLLED);
    }
    // Within braces the class is the one before them.
    if (!/[{},\d]/.test(begins)) lastClass = begins === "[";
    if (literals > MAX_LITERALS || classes > MAX_CLASSES) {
      throw new GrammarError(
        `is too large: it may have ${MAX_LITERALS} characters of literals and ` +
          `${MAX_CLASSES} classes, repetitions counted`,
      );
    }
    parts.push(written);
  }
  if (!/^[ \t]*root[ \t]*::=/m.test(source)) {
    throw new GrammarError("has no rule with the name root");
  }
  return parts.join("");
}
