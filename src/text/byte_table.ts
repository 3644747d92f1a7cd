/**
 * The bytes of each token of a byte-level vocabulary.
 *
 * @module
 */

/**
 * Byte-level BPE writes each byte as one visible character: a byte that is a
 * printable character of Latin-1 as that character, the other 68 as U+0100 and
 * up, in order (the mapping of the GPT-2 tokenizer).
 */
function charToByte(): Int16Array {
  const bytes = new Int16Array(0x144).fill(-1);
  let next = 0x100;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 0x21 && byte <= 0x7e) ||
      (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    bytes[printable ? byte : next++] = byte;
  }
  return bytes;
}

const CHAR_TO_BYTE = charToByte();

/**
 * How many bytes at the end of `bytes` begin a character whose other bytes are
 * missing: 0 to 3. What can no longer become a character is not counted, so
 * that a decoder need not wait for it.
 *
 * @example
 * ```ts
 * import { incompleteTail } from "./byte_table.ts";
 *
 * console.assert(incompleteTail(new Uint8Array([0x61, 0xf0, 0x9f])) === 2);
 * ```
 */
export function incompleteTail(bytes: Uint8Array): number {
  const n = bytes.length;
  for (let back = 1; back <= 3 && back <= n; back++) {
    const lead = bytes[n - back];
    if ((lead & 0xc0) === 0x80) continue; // a continuation byte
    const size = lead >= 0xc2 && lead <= 0xdf
      ? 2
      : lead >= 0xe0 && lead <= 0xef
      ? 3
      : lead >= 0xf0 && lead <= 0xf4
      ? 4
      : 1;
    if (back >= size) return 0;
    if (back > 1) {
      // These lead bytes restrict their second one: no overlong form, no
      // surrogate, nothing past U+10FFFF.
      const second = bytes[n - back + 1];
      const low = lead === 0xe0 ? 0xa0 : lead === 0xf0 ? 0x90 : 0x80;
      const high = lead === 0xed ? 0x9f : lead === 0xf4 ? 0x8f : 0xbf;
      if (second < low || second > high) return 0;
    }
    return back;
  }
  return 0;
}

const encoder = new TextEncoder();
// A token may well begin with U+FEFF: it is text here, not a byte order mark.
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** Bytes to text; what is no character becomes U+FFFD. */
export function decodeUtf8(bytes: Uint8Array): string {
  return decoder.decode(bytes);
}

/** The bytes of every id of a vocabulary, in one array. */
export class ByteTable {
  readonly #bytes: Uint8Array;
  readonly #offsets: Uint32Array;
  readonly #texts: (string | null | undefined)[];

  /**
   * @param tokens By id, the token as tokenizer.json writes it; an id without a
   * token has no bytes. A token with a character outside the byte alphabet
   * stands for its own UTF-8, as in the decoder of the tokenizers library.
   */
  constructor(tokens: readonly (string | undefined)[]) {
    const offsets = new Uint32Array(tokens.length + 1);
    let bytes = new Uint8Array(8 * tokens.length + 64);
    let end = 0;
    for (let id = 0; id < tokens.length; id++) {
      const token = tokens[id] ?? "";
      if (end + 3 * token.length > bytes.length) {
        const larger = new Uint8Array(2 * bytes.length + 3 * token.length);
        larger.set(bytes);
        bytes = larger;
      }
      end += write(token, bytes, end);
      offsets[id + 1] = end;
    }
    this.#bytes = bytes.slice(0, end);
    this.#offsets = offsets;
    this.#texts = new Array(tokens.length);
  }

  /** How many ids there are. */
  get size(): number {
    return this.#offsets.length - 1;
  }

  /** The bytes of a token: a view, not to be written to. */
  bytes(id: number): Uint8Array {
    return this.#bytes.subarray(this.#offsets[id], this.#offsets[id + 1]);
  }

  /**
   * The text of a token that ends with a whole character, else `undefined`.
   * It holds where no bytes wait before it.
   */
  text(id: number): string | undefined {
    let text = this.#texts[id];
    if (text === undefined) {
      const bytes = this.bytes(id);
      text = incompleteTail(bytes) === 0 ? decodeUtf8(bytes) : null;
      this.#texts[id] = text;
    }
    return text ?? undefined;
  }

  /** The bytes of all `ids` that `keep` lets through, one after another. */
  join(ids: ArrayLike<number>, keep: (id: number) => boolean): Uint8Array {
    let length = 0;
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i];
      if (keep(id)) length += this.#offsets[id + 1] - this.#offsets[id];
    }
    const result = new Uint8Array(length);
    let at = 0;
    for (let i = 0; i < ids.length; i++) {
      if (!keep(ids[i])) continue;
      const bytes = this.bytes(ids[i]);
      result.set(bytes, at);
      at += bytes.length;
    }
    return result;
  }
}

/** Writes a token's bytes at `at`; returns how many. */
function write(token: string, bytes: Uint8Array, at: number): number {
  for (let i = 0; i < token.length; i++) {
    const code = token.charCodeAt(i);
    const byte = code < CHAR_TO_BYTE.length ? CHAR_TO_BYTE[code] : -1;
    if (byte < 0) return encoder.encodeInto(token, bytes.subarray(at)).written;
    bytes[at + i] = byte;
  }
  return token.length;
}
