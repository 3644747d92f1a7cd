/** Wrong arguments of every kind, and what is said about them. */
import { assert } from "@std/assert";

/** A value of each kind; an option takes at most those of the kinds that it names. */
const KINDS: Record<string, readonly unknown[]> = {
  null: [null],
  boolean: [true, false],
  number: [0, -1, 0.5, NaN, Infinity, 2 ** 53, -0],
  bigint: [1n],
  string: ["", "a", "1", "cpu"],
  symbol: [Symbol("s")],
  function: [() => 1],
  array: [[], ["cpu"], [0.5], [null]],
  object: [{}, { valueOf: () => 1, toString: () => "cpu" }, new Date(0)],
};

/** The values of all kinds but these. */
export function valuesBut(...kinds: string[]): unknown[] {
  return Object.entries(KINDS).flatMap(([kind, values]) =>
    kinds.includes(kind) ? [] : values
  );
}

/** What a call threw; its promise's rejection counts only where the call shall reject. */
async function failure(call: () => unknown, rejects: boolean) {
  let result: unknown;
  try {
    result = call();
  } catch (error) {
    assert(!rejects, `threw ${error} instead of rejecting`);
    return error;
  }
  if (!rejects) return undefined;
  try {
    await result;
    return undefined;
  } catch (error) {
    return error;
  }
}

/** Each call fails with an error of just this class whose message names `name` and what is right. */
export async function refuses(
  calls: Iterable<() => unknown>,
  type: typeof TypeError | typeof RangeError,
  name: string,
  rejects: boolean,
) {
  for (const [i, call] of [...calls].entries()) {
    const error = await failure(call, rejects);
    const what = `${name}, call ${i}: ${error}`;
    assert(error instanceof type, what);
    assert(error.message.startsWith("Cannot "), what);
    assert(error.message.includes(name), what);
    assert(/must|is not an option|belongs to/.test(error.message), what);
    assert(error.message.length < 600, what);
  }
}

export interface Option {
  /** The kinds that its values have. */
  kinds: string[];
  /** Values of such a kind that are refused. */
  bad: unknown[];
  good: unknown[];
}

export const number = (bad: number[], good: number[]): Option => ({
  kinds: ["number"],
  bad: [NaN, Infinity, -Infinity, ...bad],
  good,
});
export const integer = (bad: number[], good: number[]): Option =>
  number([0.5, 1e-300, ...bad], good);
