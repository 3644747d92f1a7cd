/**
 * Sets of characters, and their UTF-8.
 *
 * @module
 */

import { byte, type ByteRange, either, type Expr, sequence } from "./expr.ts";

/** Code points from the first to the second, both included. */
export type CharRange = readonly [low: number, high: number];

const LAST = 0x10ffff;
/** UTF-8 has no surrogates. */
const SURROGATES: CharRange = [0xd800, 0xdfff];

/** A set of characters (Unicode scalar values). */
export class CharSet {
  /** In ascending order, neither overlapping nor touching. */
  readonly ranges: readonly CharRange[];

  private constructor(ranges: readonly CharRange[]) {
    this.ranges = ranges;
  }

  /** The characters of the ranges; surrogates are left out. */
  static of(...ranges: readonly CharRange[]): CharSet {
    const merged: [number, number][] = [];
    for (const [low, high] of [...ranges].sort((a, b) => a[0] - b[0])) {
      const last = merged.at(-1);
      if (last && low <= last[1] + 1) last[1] = Math.max(last[1], high);
      else merged.push([low, high]);
    }
    const [first, final] = SURROGATES;
    const parts = merged.flatMap(([low, high]): CharRange[] => [
      [low, Math.min(high, first - 1)],
      [Math.max(low, final + 1), high],
    ]);
    return new CharSet(parts.filter(([low, high]) => low <= high));
  }

  /** The characters of a text. */
  static from(text: string): CharSet {
    return CharSet.of(...Array.from(text, (char): CharRange => {
      const point = char.codePointAt(0)!;
      return [point, point];
    }));
  }

  /** All characters. */
  static readonly all: CharSet = CharSet.of([0, LAST]);

  /** Whether it has no character. */
  get isEmpty(): boolean {
    return this.ranges.length === 0;
  }

  /** What is in either. */
  union(...others: readonly CharSet[]): CharSet {
    return CharSet.of(...this.ranges, ...others.flatMap((set) => set.ranges));
  }

  /** All characters that are not in it. */
  complement(): CharSet {
    const gaps: CharRange[] = [];
    let next = 0;
    for (const [low, high] of this.ranges) {
      if (low > next) gaps.push([next, low - 1]);
      next = high + 1;
    }
    if (next <= LAST) gaps.push([next, LAST]);
    return CharSet.of(...gaps);
  }

  /** What is in both. */
  intersect(other: CharSet): CharSet {
    return this.complement().union(other.complement()).complement();
  }

  /** What is in this one only. */
  minus(other: CharSet): CharSet {
    return this.intersect(other.complement());
  }

  /** One of its characters in UTF-8. */
  toExpr(): Expr {
    const single = this.ranges
      .filter(([low]) => low < 0x80)
      .map(([low, high]): ByteRange => [low, Math.min(high, 0x7f)]);
    const sequences = this.ranges.flatMap(([low, high]) =>
      utf8(Math.max(low, 0x80), high)
    );
    return either(
      ...single.length > 0 ? [byte(...single)] : [],
      ...sequences.map((bytes) => sequence(...bytes.map((one) => byte(one)))),
    );
  }
}

/** Where the number of bytes of a character changes. */
const LENGTHS: readonly CharRange[] = [
  [0x80, 0x7ff],
  [0x800, 0xffff],
  [0x10000, LAST],
];

/** The byte sequences, as ranges at each place, of the characters of a range past ASCII. */
function utf8(low: number, high: number): ByteRange[][] {
  return LENGTHS.flatMap(([from, to], i) =>
    split(Math.max(low, from), Math.min(high, to), i + 1)
  );
}

/** Splits a range so that each place can be chosen by itself. */
function split(
  low: number,
  high: number,
  continuations: number,
): ByteRange[][] {
  if (low > high) return [];
  for (let place = continuations; place >= 1; place--) {
    // The bits below this place must go from all zeros to all ones, unless
    // those above are fixed.
    const below = (1 << (6 * place)) - 1;
    if ((low & ~below) === (high & ~below)) continue;
    if ((low & below) !== 0) {
      const end = low | below;
      return [
        ...split(low, end, continuations),
        ...split(end + 1, high, continuations),
      ];
    }
    if ((high & below) !== below) {
      const start = high & ~below;
      return [
        ...split(low, start - 1, continuations),
        ...split(start, high, continuations),
      ];
    }
  }
  const lead = [0, 0xc0, 0xe0, 0xf0][continuations];
  const bytes: ByteRange[] = [];
  for (let place = continuations; place >= 0; place--) {
    const shift = 6 * place;
    const mark = place === continuations ? lead : 0x80;
    const bits = place === continuations ? 0x1f : 0x3f;
    bytes.push([
      mark | ((low >> shift) & bits),
      mark | ((high >> shift) & bits),
    ]);
  }
  return [bytes];
}
