/**
 * What a grammar cannot be.
 *
 * @module
 */

/**
 * A grammar that cannot be followed. The message says what it does wrong, as
 * in "uses multipleOf at /properties/n, which cannot be enforced": who throws
 * it further puts the grammar's name before it.
 */
export class GrammarError extends Error {
  /** @ignore */
  override readonly name = "GrammarError";
}

/** A grammar that uses what cannot be enforced. */
export function unsupported(what: string, where: string): GrammarError {
  return new GrammarError(`uses ${what} at ${where}, which cannot be enforced`);
}
