/**
 * Stand-in for `jsr:@std/assert` where its registry cannot be reached: the few assertions that
 * the tests use, over `node:assert/strict`. Dropping `links` from deno.json brings the real one.
 */
import * as node from "node:assert/strict";

/** Thrown by every assertion here. */
export const AssertionError: typeof node.AssertionError = node.AssertionError;

/** Throws unless `value` is truthy. */
export function assert(value: unknown, message = ""): asserts value {
  node.ok(value, message === "" ? undefined : message);
}

/** Throws unless both are deeply equal. */
export function assertEquals<T>(actual: T, expected: T, message?: string) {
  node.deepStrictEqual(actual, expected, message);
}

/** Throws when both are deeply equal. */
export function assertNotEquals<T>(actual: T, expected: T, message?: string) {
  node.notDeepStrictEqual(actual, expected, message);
}

/** Throws unless both are the same value by `Object.is`. */
export function assertStrictEquals<T>(
  actual: T,
  expected: T,
  message?: string,
) {
  node.strictEqual(actual, expected, message);
}

/** Throws unless the numbers differ by at most `tolerance` (by default 1e-7 relative). */
export function assertAlmostEquals(
  actual: number,
  expected: number,
  tolerance: number = Math.abs(expected) * 1e-7,
  message?: string,
) {
  if (Object.is(actual, expected)) return;
  if (!(Math.abs(actual - expected) <= tolerance)) {
    node.fail(message ?? `${actual} is not within ${tolerance} of ${expected}`);
  }
}

/** Throws unless `actual` contains `expected`. */
export function assertStringIncludes(
  actual: string,
  expected: string,
  message?: string,
) {
  if (!actual.includes(expected)) {
    node.fail(
      message ?? `${JSON.stringify(actual)} lacks ${JSON.stringify(expected)}`,
    );
  }
}

/** Throws unless `value` is an instance of `type`. */
export function assertInstanceOf<T>(
  value: unknown,
  // deno-lint-ignore no-explicit-any -- the only parameter list that every constructor has
  type: abstract new (...args: any[]) => T,
  message = "",
): asserts value is T {
  if (!(value instanceof type)) {
    node.fail(message || `${value} is not an instance of ${type.name}`);
  }
}

// deno-lint-ignore no-explicit-any -- as above
type ErrorClass<E extends Error> = abstract new (...args: any[]) => E;

function checkError<E extends Error>(
  error: unknown,
  type?: ErrorClass<E>,
  includes?: string,
): E {
  if (!(error instanceof Error)) {
    node.fail(`what was thrown is not an Error: ${error}`);
  }
  if (type && !(error instanceof type)) {
    node.fail(`expected ${type.name}, got ${error.name}: ${error.message}`);
  }
  if (includes !== undefined) assertStringIncludes(error.message, includes);
  return error as E;
}

/** Throws unless `run` throws an error of that class whose message contains `includes`. */
export function assertThrows<E extends Error = Error>(
  run: () => unknown,
  type?: ErrorClass<E>,
  includes?: string,
): E {
  let error: unknown;
  try {
    run();
  } catch (thrown) {
    error = thrown;
    return checkError(error, type, includes);
  }
  return node.fail("expected an error, nothing was thrown");
}

/** Throws unless the promise rejects with an error of that class whose message contains `includes`. */
export async function assertRejects<E extends Error = Error>(
  run: () => PromiseLike<unknown>,
  type?: ErrorClass<E>,
  includes?: string,
): Promise<E> {
  try {
    await run();
  } catch (thrown) {
    return checkError(thrown, type, includes);
  }
  return node.fail("expected a rejection, the promise resolved");
}
