import type { NativeDevice, NativeModel } from "../../ffi/mod.ts";
import { wrongType } from "../arguments.ts";
import { Cache } from "../cache/cache.ts";
import type { CacheOptions, CacheStore } from "../cache/store.ts";
import type { Timeline } from "../cache/timeline.ts";
import { DisposedError } from "../errors.ts";
import type { Engine } from "../generate/engine.ts";
import { ForwardTask, ScoreTask } from "../generate/forward.ts";
import { ABORTED, GenerateTask } from "../generate/generate_task.ts";
import { type Generation, GenerationStream } from "../generate/generation.ts";
import { type GenerateOptions, resolveOptions } from "../generate/options.ts";
import type { Task } from "../generate/task.ts";
import type { GrammarCompiler } from "../grammar/compiler.ts";
import type { Message } from "../text/message.ts";
import type { Tokenizer } from "../text/tokenizer.ts";
import type { ModelConfig } from "./config.ts";
import type { GenerationConfig } from "./generation_config.ts";
import type { RecordedModel } from "./layers.ts";
import { checkForwardOptions, type ForwardOptions } from "./forward_options.ts";
import { checkTokens } from "./tokens.ts";

/** What a {@link Model} is made of: by `loadModel()`. */
export interface ModelInternals {
  config: ModelConfig;
  generationConfig: GenerationConfig | undefined;
  eosTokenIds: readonly number[];
  tokenizer: Tokenizer | undefined;
  /** Absent without a tokenizer. */
  grammars: GrammarCompiler | undefined;
  device: NativeDevice;
  native: NativeModel;
  engine: Engine;
  programs: { decode: number; mixed: number };
  /** What the mixed program was recorded from. */
  recorded: RecordedModel;
  caches: CacheStore;
  /** Type that the weights run in. */
  weightsType: string;
}

/** Bytes that a model holds. */
export interface MemoryUse {
  /** Of weights, converted or mapped. */
  weights: number;
  /** Of the pages that caches and running calls hold. */
  caches: number;
  /** Reclaimable. */
  prefixCache: number;
  /** Of values between operations. */
  workspace: number;
}

/** For what the template needs later: the caller may change the messages meanwhile. */
function copyMessages(messages: readonly Message[]): readonly Message[] {
  try {
    return structuredClone(messages);
  } catch (cause) {
    throw new TypeError(
      "Cannot generate: messages hold what cannot be copied, and must be plain data",
      { cause },
    );
  }
}

/** A loaded checkpoint. See {@link loadModel}. */
export class Model implements Disposable, AsyncDisposable {
  /** The parsed config under the names of `config.json`. */
  readonly config: ModelConfig;
  readonly #internals: ModelInternals;
  #closing: Promise<void> | undefined;

  /** @ignore made by `loadModel()` */
  constructor(internals: ModelInternals) {
    this.config = internals.config;
    this.#internals = internals;
  }

  #open(what: string): ModelInternals {
    if (this.#closing) {
      throw new DisposedError(`Cannot ${what}: the model is disposed`);
    }
    return this.#internals;
  }

  /**
   * The parts below the public surface, for tests and benchmarks.
   * @ignore
   */
  inspect(): ModelInternals {
    return this.#open("inspect");
  }

  /** The device in use: "cpu", "cuda:0", … */
  get device(): string {
    return this.#internals.device.device;
  }

  /** Requests in steps, and those that wait for a place. */
  get load(): { running: number; waiting: number } {
    return this.#internals.engine.load;
  }

  /** Text to ids and back. @throws TypeError when the checkpoint has no tokenizer */
  get tokenizer(): Tokenizer {
    const { tokenizer } = this.#internals;
    if (!tokenizer) {
      throw new TypeError(
        "Cannot use text: the checkpoint has no tokenizer.json; token ids work",
      );
    }
    return tokenizer;
  }

  /** Bytes in use. */
  memory(): MemoryUse {
    const { native } = this.#open("tell the memory");
    const memory = native.memory();
    return {
      weights: memory.weightsPrivate + memory.weightsMapped,
      ...this.#internals.caches.bytes,
      workspace: memory.workspace,
    };
  }

  /**
   * An empty cache.
   *
   * @throws RangeError for a capacity beyond the model's maximum; OutOfMemoryError when its pages
   * are not free
   */
  createCache(options: CacheOptions = {}): Cache {
    return this.#open("create a cache").caches.create(options);
  }

  /**
   * Reads a cache that `cache.save()` wrote: of this checkpoint, with weights of this type.
   *
   * @throws CacheFileError when the file is damaged or of another model, type or layout;
   * `Deno.errors.NotFound`; OutOfMemoryError
   */
  async loadCache(path: string | URL): Promise<Cache> {
    return await this.#open("load the cache").caches.load(path);
  }

  /** Cancels the task when the signal aborts; returns what ends the listening. */
  #listen(signal: AbortSignal | undefined, task: Task): () => void {
    if (!signal) return () => {};
    const abort = () => this.#internals.engine.cancel(task, signal.reason);
    signal.addEventListener("abort", abort, { once: true });
    return () => signal.removeEventListener("abort", abort);
  }

  /**
   * Appends tokens to a cache and gives logits: `[1, vocab_size]` of the last token, or with
   * `logits: "all"` `[tokens.length, vocab_size]`, row-major.
   */
  async forward(
    tokens: readonly number[],
    options: ForwardOptions = {},
  ): Promise<Float32Array> {
    const verb = "run forward";
    checkForwardOptions(options, verb);
    const { logits = "last" } = options;
    const { vocab_size } = this.config;
    return await this.#append(
      verb,
      tokens,
      options,
      (timeline, ids, settle) =>
        new ForwardTask(
          timeline,
          ids,
          options.cache === undefined,
          logits === "all",
          vocab_size,
          settle,
        ),
    );
  }

  /**
   * Appends tokens to a cache and gives the log-probability of each token after the first, given
   * all before it: `tokens.length - 1` values.
   */
  async score(
    tokens: readonly number[],
    options: Omit<ForwardOptions, "logits"> = {},
  ): Promise<Float32Array> {
    checkForwardOptions(options, "score");
    return await this.#append(
      "score",
      tokens,
      options,
      (timeline, ids, settle) =>
        new ScoreTask(timeline, ids, options.cache === undefined, settle),
    );
  }

  async #append(
    what: string,
    tokens: readonly number[],
    options: ForwardOptions,
    make: (
      timeline: Timeline,
      ids: number[],
      settle: PromiseWithResolvers<Float32Array>,
    ) => Task,
  ): Promise<Float32Array> {
    const { engine, caches } = this.#open(what);
    const { cache, signal } = options;
    signal?.throwIfAborted();
    const maximum = cache instanceof Cache
      ? cache.capacity
      : this.config.max_position_embeddings;
    const ids = checkTokens(tokens, what, this.config.vocab_size);
    const settle = Promise.withResolvers<Float32Array>();
    let task: Task | undefined = undefined;
    const { timeline, release } = caches.hold(
      cache,
      what,
      (reason) => engine.cancel(task as unknown as Task, reason),
    );
    try {
      if (timeline.length + ids.length > maximum) {
        throw new RangeError(
          `Cannot ${what}: ${timeline.length} tokens held and ${ids.length} more must be at most ${maximum}, the ${
            cache ? "cache's capacity" : "model's maximum"
          }`,
        );
      }
      task = make(timeline, ids, settle);
      const unlisten = this.#listen(signal, task);
      engine.submit(task);
      try {
        return await settle.promise;
      } finally {
        unlisten();
      }
    } finally {
      release();
    }
  }

  /**
   * Generates text. It starts at the call; any number may be outstanding, and run batched.
   *
   * @param input text (BOS as the tokenizer says, never special tokens), token ids as they are, or
   * messages through the chat template
   * @throws TypeError, RangeError for bad arguments; CacheBusyError; DisposedError
   */
  generate(
    input: string | readonly number[] | readonly Message[],
    options: GenerateOptions = {},
  ): Generation {
    const internals = this.#open("generate");
    const { engine, caches, tokenizer, grammars } = internals;
    const { generationConfig, eosTokenIds } = internals;
    const { vocab_size, max_position_embeddings } = this.config;
    const resolved = resolveOptions(options, {
      vocab_size,
      eosTokenIds,
      generationConfig,
    });
    const { prompt, messages } = this.#prompt(input);
    const { cache, signal } = options;
    const asked = options.grammar;
    if (resolved.stop.length > 0 || asked !== undefined) void this.tokenizer;
    const grammar = asked === undefined ? undefined : grammars?.compile(asked);
    const capacity = cache instanceof Cache
      ? cache.capacity
      : max_position_embeddings;
    if (prompt.length > capacity) {
      throw new RangeError(
        `Cannot generate: the prompt has ${prompt.length} tokens, and must have at most ${capacity}`,
      );
    }
    let task: GenerateTask | undefined = undefined;
    const cancel = (reason: unknown) =>
      engine.cancel(task as unknown as GenerateTask, reason);
    const held = caches.hold(cache, "generate", cancel);
    const { timeline } = held;
    // Requests without a cache of their own share what finished ones left.
    const prefix = cache === undefined && options.reusePrefix !== false
      ? caches.prefixOf(timeline)
      : undefined;
    if (prefix) timeline.adopt(prompt, prefix.find(prompt));
    const cachedTokens = Math.min(
      timeline.commonPrefix(prompt),
      prompt.length - 1,
    );
    timeline.truncate(cachedTokens);
    const settled = Promise.withResolvers<void>();
    const stream = new GenerationStream({
      hasText: tokenizer !== undefined,
      stop: () => {
        cancel(ABORTED);
        return settled.promise;
      },
    });
    let unlisten = () => {};
    task = new GenerateTask({
      timeline,
      prompt,
      cachedTokens,
      messages,
      grammar: grammar?.start(),
      options: {
        ...resolved,
        maxTokens: Math.min(resolved.maxTokens, capacity - prompt.length),
      },
      tokenizer,
      keepsTimeline: cache !== undefined,
      stream,
      release: () => {
        unlisten();
        prefix?.keep(timeline.tokens, timeline.pages);
        held.release();
        settled.resolve();
      },
    });
    if (signal?.aborted) {
      task.fail(signal.reason);
      return stream;
    }
    unlisten = this.#listen(signal, task);
    engine.submit(task);
    return stream;
  }

  #prompt(
    input: string | readonly number[] | readonly Message[],
  ): { prompt: number[]; messages?: readonly Message[] } {
    if (typeof input === "string") {
      const prompt = this.tokenizer.encode(input);
      if (prompt.length === 0) {
        throw new RangeError(
          "Cannot generate: the input is empty, and must have at least one token",
        );
      }
      return { prompt };
    }
    if (!Array.isArray(input)) {
      const right = "a string, token ids or messages";
      throw wrongType("generate", "the input", input, right);
    }
    if (input.length > 0 && typeof input[0] === "object") {
      const prompt = this.tokenizer.encode(input as readonly Message[]);
      return { prompt, messages: copyMessages(input as readonly Message[]) };
    }
    return { prompt: checkTokens(input, "generate", this.config.vocab_size) };
  }

  /** Gives the memory of kept prefixes back. */
  clearPrefixCache(): void {
    this.#open("clear the prefix cache").caches.clearPrefixes();
  }

  /**
   * Stops what runs within one step and frees everything; running calls reject with
   * DisposedError. Returns at once, and may be repeated.
   */
  dispose(): void {
    this.#close();
  }

  /** As {@link dispose}. */
  [Symbol.dispose]() {
    this.#close();
  }

  /** As {@link dispose}, and waits until the memory is free. */
  async [Symbol.asyncDispose]() {
    await this.#close();
  }

  #close(): Promise<void> {
    return this.#closing ??= (async () => {
      const { engine, caches, native, device } = this.#internals;
      caches.close();
      await engine.close(new DisposedError("The model was disposed"));
      await caches.dispose();
      native[Symbol.dispose]();
      device[Symbol.dispose]();
    })();
  }
}
