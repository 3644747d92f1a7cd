/**
 * The Hugging Face tokenizers in WebAssembly: one instance, replaced when it
 * breaks.
 *
 * @module
 */

import { CheckpointError, NativeError } from "../errors.ts";

/** What an instance gives for one tokenizer.json. */
interface WasmTokenizer {
  encode(text: string): Int32Array;
}

/** One WebAssembly heap. */
interface WasmInstance {
  open(json: ArrayBuffer): WasmTokenizer;
}

/** What `build/tokenizers.js` exports. */
interface Bundle {
  create(log: (line: string) => void): WasmInstance;
}

const BUNDLE = new URL("../../build/tokenizers.js", import.meta.url);

async function loadBundle(address: URL): Promise<Bundle> {
  let module: unknown;
  try {
    module = await import(address.href);
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    throw new NativeError(
      `Cannot open the tokenizer: ${address.href} cannot be imported ` +
        "(`deno task build` makes it)",
      { cause: error },
    );
  }
  return module as Bundle;
}

/**
 * Encodes plain text by a tokenizer.json. The library reports what it cannot do
 * by aborting, which leaves its heap unusable: then the instance is dropped,
 * and the next call makes another.
 */
export class WasmEncoder {
  readonly #bundle: Bundle;
  readonly #json: ArrayBuffer;
  #tokenizer: WasmTokenizer | undefined;
  #printed: string[] = [];

  private constructor(bundle: Bundle, json: ArrayBuffer) {
    this.#bundle = bundle;
    this.#json = json;
  }

  /**
   * @param json The bytes of a tokenizer.json.
   * @param file Its name, for errors.
   * @param bundle The address of the bundle that `deno task build` makes.
   * @throws {CheckpointError} When the library refuses the file.
   * @throws {NativeError} When the bundle is missing.
   */
  static async open(
    json: ArrayBuffer,
    file: string,
    bundle: URL = BUNDLE,
  ): Promise<WasmEncoder> {
    const encoder = new WasmEncoder(await loadBundle(bundle), json);
    try {
      encoder.#tokenizer = encoder.#start();
    } catch (error) {
      throw new CheckpointError(
        `${file}: the tokenizers library refuses it: ${encoder.#reason(error)}`,
        { cause: error },
      );
    }
    return encoder;
  }

  #start(): WasmTokenizer {
    const log = (line: string) => {
      // Only the first lines tell the reason; a stack trace may follow.
      if (this.#printed.length < 16) this.#printed.push(line);
    };
    this.#printed = [];
    return this.#bundle.create(log).open(this.#json);
  }

  /** What the library said before it aborted, on one line. */
  #reason(error: unknown): string {
    const said = this.#printed.find((line) => /Error\(|called `/.test(line)) ??
      this.#printed.find((line) => line !== "");
    return said ?? (error instanceof Error ? error.message : String(error));
  }

  /**
   * The ids of `text`, which is well-formed; added tokens are not looked for.
   *
   * @throws {NativeError} When the library aborts, as it does out of memory.
   */
  encode(text: string): Int32Array {
    try {
      this.#tokenizer ??= this.#start();
      return this.#tokenizer.encode(text);
    } catch (error) {
      this.#tokenizer = undefined;
      throw new NativeError(
        `Cannot encode ${text.length} characters: the tokenizers library ` +
          `aborted: ${this.#reason(error)}`,
        { cause: error },
      );
    }
  }
}
