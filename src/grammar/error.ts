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

/** The error of a call for a grammar: `Cannot generate: grammar.json uses …`. */
export function refuse(name: string, error: unknown): unknown {
  if (!(error instanceof GrammarError)) return error;
  return new TypeError(`Cannot generate: ${name} ${error.message}`, {
    cause: error,
  });
}

/** A grammar that uses what cannot be enforced. */
export function unsupported(what: string, where: string): GrammarError {
  return new GrammarError(`uses ${what} at ${where}, which cannot be enforced`);
}
