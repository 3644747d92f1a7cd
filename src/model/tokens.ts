import { wrongType } from "../arguments.ts";

/**
 * Checks token ids from the outside and copies them.
 *
 * @param what what cannot be done otherwise, for the message
 * @throws TypeError when it is no array of numbers, RangeError when it is empty or an id is outside
 * `[0, vocab_size)`
 */
export function checkTokens(
  tokens: unknown,
  what: string,
  vocab_size: number,
): number[] {
  if (!Array.isArray(tokens)) {
    throw wrongType(what, "tokens", tokens, "an array of token ids");
  }
  if (tokens.length === 0) {
    throw new RangeError(
      `Cannot ${what}: tokens is empty, and must have at least one token id`,
    );
  }
  return Array.from(tokens, (id: unknown, i) => {
    if (typeof id !== "number") {
      throw wrongType(what, `tokens[${i}]`, id, "a token id");
    }
    if (!Number.isInteger(id) || id < 0 || id >= vocab_size) {
      throw new RangeError(
        `Cannot ${what}: token id ${id} at ${i} is outside the vocabulary, and must be in [0, ${vocab_size})`,
      );
    }
    return id;
  });
}
