import type { Message } from "../text/message.ts";

/** One of the most likely tokens at a place of the output. */
export interface TokenLogprob {
  /** Its id. */
  token: number;
  /** Its text; U+FFFD stands for bytes that are no whole character. */
  text: string;
  /** Its bytes; empty without a tokenizer. */
  bytes: Uint8Array;
  /** Log-softmax of the raw logits: before bias, penalties, mask and temperature. */
  logprob: number;
}

/** A token of the output with its log-probability and the most likely ones in its place. */
export interface TokenLogprobs extends TokenLogprob {
  /** In descending order. */
  top: TokenLogprob[];
}

/** A piece of the output. Chunks concatenate to the result. */
export interface Chunk {
  /** Whole characters; may be empty. */
  text: string;
  /** The tokens sampled since the chunk before. */
  tokens: number[];
  /** When asked for: one for each token. */
  logprobs?: TokenLogprobs[];
}

/** Why a generation ended. */
export type FinishReason = "stop" | "length" | "abort";

/** All of the output. */
export interface GenerationResult {
  /** Whole characters; stop strings are not in it. */
  text: string;
  /** Every token sampled, the closing one and those of a stop string too. */
  tokens: number[];
  /** When asked for: one for each token. */
  logprobs?: TokenLogprobs[];
  /** The answer, to push onto the conversation. */
  message: Message;
  /** Why it ended. */
  finishReason: FinishReason;
  /** Tokens of the prompt and of the output. */
  usage: {
    promptTokens: number;
    /** Of them, those that a cache already held. */
    cachedTokens: number;
    completionTokens: number;
  };
  /** Milliseconds: waiting for a place, until the first token, and from there on. */
  timings: { queueMs: number; prefillMs: number; decodeMs: number };
  /** What the draws came from. */
  seed: number;
}

/**
 * A running generation: an async iterable of chunks, and a promise of the whole through
 * {@link text}, {@link json} and {@link result}. It has started; iterating is not needed.
 */
export interface Generation
  extends AsyncIterableIterator<Chunk, undefined, undefined>, AsyncDisposable {
  /** Stops within one step; resolves when the last step has ended. */
  return(): Promise<IteratorResult<Chunk, undefined>>;
  /** The whole text. */
  text(): Promise<string>;
  /**
   * The whole text, parsed. Rejects with a SyntaxError that names `finishReason` when it is no JSON,
   * or a number that was cut.
   */
  json<T = unknown>(): Promise<T>;
  /** Text, tokens and what is known about them. */
  result(): Promise<GenerationResult>;
}

/** What a {@link GenerationStream} needs of whoever produces its chunks. */
export interface GenerationSource {
  /** Stops the work within one step; resolves when it has. Idempotent. */
  stop(): Promise<void>;
  /** Whether the model can make text of tokens. */
  hasText: boolean;
}

/** The same promise. Whoever awaits it sees a rejection; nobody has to. */
function handled<T>(promise: Promise<T>): Promise<T> {
  promise.catch(() => {});
  return promise;
}

/** Carries chunks from the engine to one reader, and the result to anybody. */
export class GenerationStream implements Generation {
  readonly #source: GenerationSource;
  readonly #chunks: Chunk[] = [];
  readonly #result = Promise.withResolvers<GenerationResult>();
  #ended = false;
  #failure: { error: unknown } | undefined;
  #wake: (() => void) | undefined;
  #iterated = false;
  #returned = false;

  constructor(source: GenerationSource) {
    this.#source = source;
    handled(this.#result.promise);
  }

  /** Adds a chunk. For the producer. */
  push(chunk: Chunk) {
    this.#chunks.push(chunk);
    this.#notify();
  }

  /** Ends it well. For the producer. */
  end(result: GenerationResult) {
    this.#ended = true;
    this.#result.resolve(result);
    this.#notify();
  }

  /** Ends it with an error, after the chunks already pushed. For the producer. */
  fail(error: unknown) {
    this.#ended = true;
    this.#failure = { error };
    this.#result.reject(error);
    this.#notify();
  }

  #notify() {
    this.#wake?.();
    this.#wake = undefined;
  }

  /** @throws TypeError at the second call: the chunks go to one reader */
  [Symbol.asyncIterator](): this {
    if (this.#iterated) {
      throw new TypeError(
        "Cannot iterate: the generation has a reader already; text() and result() may be called at any time",
      );
    }
    this.#iterated = true;
    return this;
  }

  /** The next chunk. */
  next(): Promise<IteratorResult<Chunk, undefined>> {
    return handled(this.#next());
  }

  async #next(): Promise<IteratorResult<Chunk, undefined>> {
    for (;;) {
      if (this.#returned) return { done: true, value: undefined };
      const chunk = this.#chunks.shift();
      if (chunk) return { done: false, value: chunk };
      if (this.#ended) break;
      const previous = this.#wake;
      await new Promise<void>((resolve) => {
        this.#wake = () => {
          previous?.();
          resolve();
        };
      });
    }
    if (this.#failure) throw this.#failure.error;
    return { done: true, value: undefined };
  }

  /** Stops the generation; resolves when its last step has ended. */
  async return(): Promise<IteratorResult<Chunk, undefined>> {
    this.#returned = true;
    this.#notify();
    await this.#source.stop();
    return { done: true, value: undefined };
  }

  /** As {@link return}. */
  async [Symbol.asyncDispose]() {
    await this.return();
  }

  text(): Promise<string> {
    return handled(this.#wholeText());
  }

  json<T = unknown>(): Promise<T> {
    return handled(this.#parsed<T>());
  }

  async #wholeText(): Promise<string> {
    const { text } = await this.#result.promise;
    if (!this.#source.hasText) {
      throw new TypeError(
        "Cannot give text: the checkpoint has no tokenizer.json; result().tokens has the ids",
      );
    }
    return text;
  }

  async #parsed<T>(): Promise<T> {
    const text = await this.#wholeText();
    const { finishReason } = await this.#result.promise;
    try {
      const value = JSON.parse(text) as T;
      // A number that was cut is another number.
      if (finishReason !== "stop" && /\d\s*$/.test(text)) {
        throw new Error("the number may be the beginning of another");
      }
      return value;
    } catch (cause) {
      throw new SyntaxError(
        `The output is no JSON (finishReason "${finishReason}"): ${
          JSON.stringify(text.slice(0, 80))
        }`,
        { cause },
      );
    }
  }

  result(): Promise<GenerationResult> {
    return this.#result.promise;
  }
}
