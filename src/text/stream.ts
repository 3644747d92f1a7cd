/**
 * Text from tokens as they come.
 *
 * @module
 */

import { decodeUtf8, incompleteTail } from "./byte_table.ts";
import type { Tokenizer } from "./tokenizer.ts";

const NOTHING = new Uint8Array(0);

/**
 * Decodes tokens one at a time into whole characters: a character that several
 * tokens share comes out with the last of them. What `push` and `flush` return
 * concatenates to `tokenizer.decode` of all tokens.
 *
 * @example
 * ```ts ignore
 * const stream = new TextStream(tokenizer, { skipSpecialTokens: true });
 * let text = "";
 * for (const id of ids) text += stream.push(id);
 * text += stream.flush();
 * ```
 */
export class TextStream {
  readonly #tokenizer: Tokenizer;
  readonly #skip: boolean;
  #held: Uint8Array = NOTHING;

  /**
   * @param tokenizer Whose ids will come.
   * @param options With `skipSpecialTokens` (default false) the tokens that
   * `decode` leaves out under that option have no text.
   */
  constructor(
    tokenizer: Tokenizer,
    options: { skipSpecialTokens?: boolean } = {},
  ) {
    this.#tokenizer = tokenizer;
    this.#skip = options.skipSpecialTokens ?? false;
  }

  /**
   * The whole characters that this token completes, often none or several.
   *
   * @throws {RangeError} When the id is outside the vocabulary.
   */
  push(id: number): string {
    const { table } = this.#tokenizer;
    if (!(Number.isInteger(id) && id >= 0 && id < table.size)) {
      throw new RangeError(
        `Cannot decode: id ${id} is outside the vocabulary, ` +
          `and must be in [0, ${table.size})`,
      );
    }
    if (this.#skip && this.#tokenizer.isSpecial(id)) return "";
    if (this.#held.length === 0) {
      const text = table.text(id);
      if (text !== undefined) return text;
    }
    const added = table.bytes(id);
    const bytes = new Uint8Array(this.#held.length + added.length);
    bytes.set(this.#held);
    bytes.set(added, this.#held.length);
    const whole = bytes.length - incompleteTail(bytes);
    this.#held = whole === bytes.length ? NOTHING : bytes.slice(whole);
    return whole === 0 ? "" : decodeUtf8(bytes.subarray(0, whole));
  }

  /** Ends the text: U+FFFD for a character that was left unfinished, else "". */
  flush(): string {
    const text = decodeUtf8(this.#held);
    this.#held = NOTHING;
    return text;
  }

  /** The token's bytes, a copy. */
  bytes(id: number): Uint8Array {
    return this.#tokenizer.bytes(id);
  }
}
