/**
 * Integers and numbers within bounds, digit by digit.
 *
 * @module
 */

import { GrammarError, unsupported } from "./error.ts";
import {
  byte,
  either,
  empty,
  type Expr,
  nothing,
  optional,
  repeat,
  sequence,
  text,
} from "./expr.ts";
import { DIGIT, INTEGER, INTEGER_DIGITS, NUMBER } from "./json_text.ts";

/** Bounds as a schema gives them. */
export interface Bounds {
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
}

type BoundName = keyof Bounds;

/** Digits before the point at most, of a number with bounds. */
const WHOLE_DIGITS = 15;
/** Digits after the point where the bounds have fewer, and at most. */
const FRACTION_DIGITS = 6;
const MAX_FRACTION_DIGITS = 12;

/** A digit from one to another. */
function digit(low: number, high: number): Expr {
  return low > high ? nothing : byte([0x30 + low, 0x30 + high]);
}

/** So many digits, the last `optional` of which may be missing. */
function anyDigits(count: number, optional: number): Expr {
  return repeat(DIGIT, Math.max(count - optional, 0), count);
}

/** How a number of `whole` digits is written with up to `fraction` more after a point. */
interface Form {
  readonly whole: number;
  readonly fraction: number;
}

/**
 * Digits between `low` and `high`, two strings of `whole + fraction` digits,
 * from place `at` on; what is missing at the end of the fraction counts as 0.
 */
function between(low: string, high: string, form: Form, at = 0): Expr {
  const { whole, fraction } = form;
  if (at === whole + fraction) return empty;
  const rest = (next: number): Expr =>
    next >= whole
      ? tail(whole, fraction, next)
      : sequence(anyDigits(whole - next, 0), tail(whole, fraction, whole));
  if (/^0*$/.test(low.slice(at)) && /^9*$/.test(high.slice(at))) {
    return rest(at);
  }
  const point = at === whole ? text(".") : empty;
  const a = Number(low[at]);
  const b = Number(high[at]);
  // A fraction is missing as a whole or has at least one digit.
  const maySkip = at === whole && fraction > 0 && /^0*$/.test(low.slice(at));
  const mayEnd = at > whole && /^0*$/.test(low.slice(at));
  let ways: Expr;
  if (a === b) {
    ways = sequence(digit(a, a), between(low, high, form, at + 1));
  } else {
    ways = either(
      sequence(digit(a, a), above(low, form, at + 1)),
      sequence(digit(a + 1, b - 1), rest(at + 1)),
      sequence(digit(b, b), below(high, form, at + 1)),
    );
  }
  const written = sequence(point, ways);
  return maySkip || mayEnd ? optional(written) : written;
}

/** All digits from place `at` on, in the fraction or at its beginning. */
function tail(whole: number, fraction: number, at: number): Expr {
  if (at > whole) return anyDigits(whole + fraction - at, Infinity);
  if (fraction === 0) return empty;
  return optional(sequence(text("."), repeat(DIGIT, 1, fraction)));
}

function above(low: string, form: Form, at: number): Expr {
  return between(low, "9".repeat(low.length), form, at);
}

function below(high: string, form: Form, at: number): Expr {
  return between("0".repeat(high.length), high, form, at);
}

/** Numbers from `low` to `high`, neither negative, in units of the last place. */
function magnitude(low: bigint, high: bigint, form: Form): Expr {
  const { whole, fraction } = form;
  const ways: Expr[] = [];
  // One way for each number of digits: the first must not be 0.
  for (let digits = 1; digits <= whole; digits++) {
    const unit = 10n ** BigInt(fraction + digits - 1);
    const from = digits === 1 || low > unit ? low : unit;
    const last = unit * 10n - 1n;
    const to = high < last ? high : last;
    if (from > to) continue;
    const write = (value: bigint) =>
      value.toString().padStart(digits + fraction, "0");
    ways.push(between(write(from), write(to), { whole: digits, fraction }));
  }
  return either(...ways);
}

/** Numbers from `low` to `high` in units of the last place. */
function range(low: bigint, high: bigint, form: Form): Expr {
  const ways: Expr[] = [];
  if (high >= 0n) ways.push(magnitude(low > 0n ? low : 0n, high, form));
  if (low < 0n) {
    // From 1 on: there is no -0.
    const nearest = high < 0n ? -high : 1n;
    ways.push(sequence(text("-"), magnitude(nearest, -low, form)));
  }
  return either(...ways);
}

/** A number as an integer times a power of ten, as JavaScript writes it. */
function decimal(value: number): { digits: bigint; exponent: number } {
  const [mantissa, exponent = "0"] = value.toString().split("e");
  const [whole, fraction = ""] = mantissa.split(".");
  return {
    digits: BigInt(whole + fraction),
    exponent: Number(exponent) - fraction.length,
  };
}

/** A number in units of `10 ** -fraction`, rounded up or down. */
function scaled(value: number, fraction: number, up: boolean): bigint {
  const { digits, exponent } = decimal(value);
  const shift = exponent + fraction;
  if (shift >= 0) return digits * 10n ** BigInt(shift);
  const unit = 10n ** BigInt(-shift);
  const quotient = digits / unit; // towards 0
  if (quotient * unit === digits || (digits < 0n) === up) return quotient;
  return quotient + (up ? 1n : -1n);
}

/** The bounds in units, both included; `where` is the schema's place, for errors. */
function limits(
  bounds: Bounds,
  fraction: number,
  whole: number,
  where: string,
): { low: bigint; high: bigint } {
  const unit = 10n ** BigInt(fraction);
  const most = 10n ** BigInt(whole) * unit - 1n;
  let low = -most;
  let high = most;
  const names: BoundName[] = [
    "minimum",
    "exclusiveMinimum",
    "maximum",
    "exclusiveMaximum",
  ];
  for (const name of names) {
    const bound = bounds[name];
    if (bound === undefined) continue;
    const isLow = /min/i.test(name);
    let value = scaled(bound, fraction, isLow);
    if (name.startsWith("exclusive")) {
      const step = isLow ? 1n : -1n;
      if (value === scaled(bound, fraction, !isLow)) value += step;
      // What is read is a double, which must not be rounded onto the bound.
      const read = Number(`${value}e-${fraction}`);
      if (isLow ? read <= bound : read >= bound) {
        throw unsupported(`the ${name} ${bound}`, where);
      }
    }
    if (isLow && value > low) low = value;
    if (!isLow && value < high) high = value;
  }
  if (low > high) {
    throw new GrammarError(
      `has bounds at ${where} that no ${
        fraction ? "number" : "integer"
      } of at most ${whole} digits satisfies`,
    );
  }
  return { low, high };
}

function isBounded(bounds: Bounds): boolean {
  return Object.values(bounds).some((bound) => bound !== undefined);
}

/**
 * The integers within bounds, of at most 18 digits.
 *
 * @param where The schema's place, for errors.
 * @throws {GrammarError} When there are none, or a bound cannot be enforced.
 */
export function integerWithin(bounds: Bounds, where: string): Expr {
  if (!isBounded(bounds)) return INTEGER;
  const { low, high } = limits(bounds, 0, INTEGER_DIGITS, where);
  return range(low, high, { whole: INTEGER_DIGITS, fraction: 0 });
}

/**
 * The numbers within bounds, written without an exponent: with at most 6 digits
 * after the point, or as many as a bound has.
 *
 * @param where The schema's place, for errors.
 * @throws {GrammarError} When there are none, or a bound cannot be enforced.
 */
export function numberWithin(bounds: Bounds, where: string): Expr {
  if (!isBounded(bounds)) return NUMBER;
  let fraction = FRACTION_DIGITS;
  for (const [name, bound] of Object.entries(bounds)) {
    if (bound === undefined) continue;
    const places = -decimal(bound).exponent;
    if (places > MAX_FRACTION_DIGITS) {
      throw unsupported(
        `the ${name} ${bound} with more than ${MAX_FRACTION_DIGITS} digits ` +
          "after the point",
        where,
      );
    }
    fraction = Math.max(fraction, places);
  }
  const whole = WHOLE_DIGITS;
  const { low, high } = limits(bounds, fraction, whole, where);
  return range(low, high, { whole, fraction });
}
