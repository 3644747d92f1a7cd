/**
 * What grammars know of a model's tokens.
 *
 * @module
 */

import type { Tokenizer } from "../text/tokenizer.ts";
import { TokenTrie } from "./token_trie.ts";

/** The tokens that grammars choose from. */
export class Vocabulary {
  /** `vocab_size` of the model: the length of a row of logits. */
  readonly size: number;
  /** The tokens that end an output. */
  readonly eosTokenIds: readonly number[];
  readonly #tokenizer: Tokenizer;
  #trie: TokenTrie | undefined;

  constructor(
    tokenizer: Tokenizer,
    size: number,
    eosTokenIds: readonly number[],
  ) {
    this.#tokenizer = tokenizer;
    this.size = size;
    this.eosTokenIds = eosTokenIds.filter((id) => id >= 0 && id < size);
  }

  /** Words of 32 bits that a mask has. */
  get words(): number {
    return Math.ceil(this.size / 32);
  }

  /**
   * Whether a token stands for text: neither an added one, whatever its text
   * looks like, nor one that ends the output.
   */
  isText(id: number): boolean {
    return Number.isInteger(id) && id >= 0 &&
      id < Math.min(this.size, this.#tokenizer.table.size) &&
      !this.#tokenizer.addedTokenIds.has(id) &&
      !this.eosTokenIds.includes(id);
  }

  /** The bytes of a token that stands for text, else none. */
  bytes(id: number): Uint8Array {
    return this.isText(id) ? this.#tokenizer.table.bytes(id) : new Uint8Array();
  }

  /** The tokens by their bytes; made at the first use. */
  get trie(): TokenTrie {
    this.#trie ??= new TokenTrie(
      this.#tokenizer.table,
      (id) => this.isText(id),
    );
    return this.#trie;
  }

  /** The tokens as byte-level BPE writes them, "" for those without text. */
  byteLevel(): string[] {
    return Array.from({ length: this.size }, (_, id) => {
      let text = "";
      for (const byte of this.bytes(id)) text += BYTE_TO_CHAR[byte];
      return text;
    });
  }
}

/** The visible character for each byte, as in the GPT-2 tokenizer. */
const BYTE_TO_CHAR: readonly string[] = (() => {
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte >= 0x21 && byte <= 0x7e) ||
      (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    return String.fromCharCode(printable ? byte : next++);
  });
})();
