import type { Timeline } from "../cache/timeline.ts";
import { LOGITS_ROWS } from "./engine.ts";
import { type RowRequest, type RowResult, Task } from "./task.ts";

/** `model.forward`: logits of the last token or of all. */
export class ForwardTask extends Task {
  readonly #out: Float32Array<ArrayBuffer>;
  readonly #all: boolean;
  readonly #vocabSize: number;
  readonly #settle: PromiseWithResolvers<Float32Array>;

  constructor(
    timeline: Timeline,
    tokens: readonly number[],
    suspendable: boolean,
    all: boolean,
    vocab_size: number,
    settle: PromiseWithResolvers<Float32Array>,
  ) {
    super(timeline, tokens, suspendable);
    this.#all = all;
    this.#vocabSize = vocab_size;
    this.#out = new Float32Array((all ? tokens.length : 1) * vocab_size);
    this.#settle = settle;
  }

  // A step's logits lie in a buffer of their own: not for a whole prompt at once.
  override get maxChunk(): number {
    return this.#all ? LOGITS_ROWS : super.maxChunk;
  }

  request(rows: number): RowRequest {
    if (this.#all) {
      return {
        logitRows: Array.from({ length: rows }, (_, i) => i),
        logits: true,
      };
    }
    const last = rows === this.left;
    return { logitRows: last ? [rows - 1] : [], logits: last };
  }

  override receive({ logits }: RowResult, first: number) {
    if (logits) this.#out.set(logits, this.#all ? first * this.#vocabSize : 0);
  }

  complete() {
    this.#settle.resolve(this.#out);
  }

  fail(error: unknown) {
    this.#settle.reject(error);
  }
}

/** `model.score`: the log-probability of each token after the first. */
export class ScoreTask extends Task {
  readonly #tokens: readonly number[];
  readonly #out: Float32Array<ArrayBuffer>;
  readonly #settle: PromiseWithResolvers<Float32Array>;

  constructor(
    timeline: Timeline,
    tokens: readonly number[],
    suspendable: boolean,
    settle: PromiseWithResolvers<Float32Array>,
  ) {
    super(timeline, tokens, suspendable);
    this.#tokens = tokens;
    this.#out = new Float32Array(tokens.length - 1);
    this.#settle = settle;
  }

  request(rows: number): RowRequest {
    // The last token has no successor to score.
    const scored = rows === this.left ? rows - 1 : rows;
    const logitRows = Array.from({ length: scored }, (_, i) => i);
    const targets = logitRows.map((i) => this.#tokens[this.computed + i + 1]);
    return { logitRows, targets };
  }

  override receive({ logprobs }: RowResult, first: number) {
    if (logprobs) this.#out.set(logprobs, first);
  }

  complete() {
    this.#settle.resolve(this.#out);
  }

  fail(error: unknown) {
    this.#settle.reject(error);
  }
}
