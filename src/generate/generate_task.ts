import type { Timeline } from "../cache/timeline.ts";
import type { GrammarState } from "../grammar/state.ts";
import { NativeError } from "../errors.ts";
import { StopMatcher } from "../text/stop.ts";
import type { Message } from "../text/message.ts";
import { TextStream } from "../text/stream.ts";
import type { Tokenizer } from "../text/tokenizer.ts";
import type {
  Chunk,
  FinishReason,
  GenerationResult,
  GenerationStream,
  TokenLogprob,
  TokenLogprobs,
} from "./generation.ts";
import type { ResolvedOptions } from "./options.ts";
import { type Draw, type RowRequest, Task } from "./task.ts";

/** What a {@link GenerateTask} is made of. */
export interface GenerateTaskParts {
  timeline: Timeline;
  /** The whole prompt; the timeline holds its first `cachedTokens`. */
  prompt: readonly number[];
  cachedTokens: number;
  options: ResolvedOptions;
  tokenizer: Tokenizer | undefined;
  /** The conversation, when the prompt was one. */
  messages?: readonly Message[];
  /** What the output must conform to. */
  grammar?: GrammarState;
  /** Whether the timeline outlives the call, and shall hold the last token too. */
  keepsTimeline: boolean;
  stream: GenerationStream;
  /** Called once, when the timeline is no longer used. */
  release: () => void;
}

/** `model.generate`: prefill, then one token at a time. */
export class GenerateTask extends Task {
  readonly #parts: GenerateTaskParts;
  readonly #output: number[] = [];
  readonly #logprobs: TokenLogprobs[] = [];
  readonly #text: TextStream | undefined;
  readonly #stops: StopMatcher;
  #shown = "";
  #finish: FinishReason | undefined;
  #failure: { error: unknown } | undefined;
  #decodingSince = 0;

  constructor(parts: GenerateTaskParts) {
    super(
      parts.timeline,
      parts.prompt.slice(parts.cachedTokens),
      !parts.keepsTimeline,
    );
    this.#parts = parts;
    this.#text = parts.tokenizer &&
      new TextStream(parts.tokenizer, { skipSpecialTokens: true });
    this.#stops = new StopMatcher(parts.options.stop);
    if (parts.options.maxTokens === 0) this.#finish = "length";
  }

  protected override get prefillEnd(): number {
    return this.#parts.prompt.length;
  }

  protected override get everything(): readonly number[] {
    return [...this.#parts.prompt, ...this.#output];
  }

  override get drawsLeft(): number {
    const decoding = this.#output.length > 0 && this.left === 1;
    if (this.#finish || !decoding || this.cancelled) return 0;
    // The mask of a token depends on the one before.
    if (this.#parts.grammar) return 1;
    return this.#parts.options.maxTokens - this.#output.length;
  }

  request(rows: number): RowRequest {
    if (this.#finish || rows < this.left) return { logitRows: [] };
    const { options, prompt, grammar } = this.#parts;
    const penalised = options.repetitionPenalty !== 1 ||
      options.presencePenalty !== 0 || options.frequencyPenalty !== 0;
    return {
      logitRows: [rows - 1],
      sampling: {
        values: {
          temperature: options.temperature,
          top_p: options.topP,
          min_p: options.minP,
          typical_p: options.typicalP,
          repetition_penalty: options.repetitionPenalty,
          presence_penalty: options.presencePenalty,
          frequency_penalty: options.frequencyPenalty,
          top_k: options.topK,
          seed: BigInt(options.seed),
          index: this.#output.length,
          min_index: options.minTokens,
          top_logprobs: options.logprobs ?? -1,
        },
        // Long, and of no use without penalties.
        history: penalised
          ? { prompt, output: this.#output }
          : { prompt: [], output: [] },
        bias: options.logitBias,
        stop: options.stopTokens,
        mask: grammar && ((words) => this.#mask(grammar, words)),
      },
    };
  }

  /** A mask that cannot be had fails this request, and no other of the step. */
  #mask(grammar: GrammarState, words: Int32Array) {
    try {
      grammar.mask(words);
    } catch (error) {
      this.#failure = { error };
      words.fill(-1);
    }
  }

  override accept(draw: Draw): boolean {
    const { options, stream, grammar } = this.#parts;
    if (this.#failure) return false;
    try {
      if (grammar && !grammar.accept(draw.token)) {
        throw new NativeError(`token ${draw.token} breaks the grammar`);
      }
    } catch (error) {
      this.#failure = { error };
      return false;
    }
    if (this.#output.length === 0) this.#decodingSince = performance.now();
    this.#output.push(draw.token);
    const logprobs = options.logprobs === undefined
      ? undefined
      : [this.#describe(draw)];
    this.#logprobs.push(...logprobs ?? []);
    let text = draw.stop ? "" : this.#text?.push(draw.token) ?? "";
    let stopped = draw.stop;
    if (!stopped && this.#output.length > options.minTokens) {
      ({ text, stopped } = this.#stops.push(text));
    }
    if (stopped) this.#finish = "stop";
    else if (this.#output.length >= options.maxTokens) this.#finish = "length";
    if (this.#finish && (draw.stop || !stopped)) text += this.#rest();
    this.#shown += text;
    const chunk: Chunk = { text, tokens: [draw.token] };
    stream.push(logprobs ? { ...chunk, logprobs } : chunk);
    return !this.#finish;
  }

  /** The text that was held back in case more would come. */
  #rest(): string {
    const { text, stopped } = this.#stops.push(this.#text?.flush() ?? "");
    return stopped ? text : text + this.#stops.flush();
  }

  override settle() {
    // The last token's latent is computed only for a cache that somebody keeps.
    const ended = this.#finish && !this.#parts.keepsTimeline;
    if (ended || this.#failure) {
      this.pending = [];
      this.computed = 0;
    }
  }

  #describe(draw: Draw): TokenLogprobs {
    const { tokenizer } = this.#parts;
    const one = (token: number, logprob: number): TokenLogprob => {
      const bytes = tokenizer?.bytes(token) ?? new Uint8Array();
      return { token, text: new TextDecoder().decode(bytes), bytes, logprob };
    };
    return {
      ...one(draw.token, draw.logprob),
      top: draw.top.map(({ token, logprob }) => one(token, logprob)),
    };
  }

  complete() {
    if (this.#failure) return this.fail(this.#failure.error);
    this.#release();
    this.#parts.stream.end(this.#result(this.#finish ?? "length"));
  }

  /** Ends with what there is: after `break` or `return()`. */
  abort() {
    // What was held back can be shown: no stop string will follow.
    const text = this.#rest();
    if (text) this.#parts.stream.push({ text, tokens: [] });
    this.#shown += text;
    this.#release();
    this.#parts.stream.end(this.#result("abort"));
  }

  fail(error: unknown) {
    if (error === ABORTED) return this.abort();
    this.#release();
    this.#parts.stream.fail(error);
  }

  #release() {
    this.#parts.grammar?.dispose();
    this.#parts.release();
  }

  #result(finishReason: FinishReason): GenerationResult {
    const { prompt, cachedTokens, options, tokenizer, messages } = this.#parts;
    const now = performance.now();
    const started = this.startedAt || now;
    const decoding = this.#decodingSince || now;
    return {
      text: this.#shown,
      tokens: this.#output,
      ...options.logprobs === undefined ? {} : { logprobs: this.#logprobs },
      message: tokenizer?.answerMessage(this.#shown, messages) ??
        { role: "assistant", content: this.#shown },
      finishReason,
      usage: {
        promptTokens: prompt.length,
        cachedTokens,
        completionTokens: this.#output.length,
      },
      timings: {
        queueMs: started - this.queuedAt,
        prefillMs: decoding - started,
        decodeMs: now - decoding,
      },
      seed: options.seed,
    };
  }
}

/** The reason of a task that its reader has left: it ends with what it has. */
export const ABORTED: unique symbol = Symbol("aborted");
