import type { SamplingValues } from "../../ffi/mod.ts";
import type { Timeline } from "../cache/timeline.ts";

/** How attention is computed; fixed for all tokens that a call prefills (docs/numerics.md). */
export type Path = "absorbed" | "projected";

/** From so many tokens to prefill, up-projected keys and values cost less than absorbed ones. */
const PROJECTED_FROM = 128;

/** What a task wants of the rows that a step computes for it. */
export interface RowRequest {
  /** Rows, counted from the chunk's first, whose logits are needed; ascending. */
  logitRows: readonly number[];
  /** For each of them the token whose log-probability is wanted. */
  targets?: readonly number[];
  /** How to draw after the last of them. */
  sampling?: SamplingRequest;
  /** Whether the logits themselves are wanted. */
  logits?: boolean;
}

/** A draw: the numbers, and the lists that go into the step's common buffer. */
export interface SamplingRequest {
  values: SamplingValues;
  history: { prompt: readonly number[]; output: readonly number[] };
  bias: readonly (readonly [token: number, bias: number])[];
  stop: readonly number[];
  /** Sets the bits of the tokens that are allowed, while the layers run. */
  mask?: (words: Int32Array) => void;
}

/** What a step gave for the rows that asked. */
export interface RowResult {
  /** `[logitRows.length, vocab_size]` */
  logits?: Float32Array;
  /** `[logitRows.length]` */
  logprobs?: Float32Array;
}

/** A drawn token. */
export interface Draw {
  token: number;
  /** Log-softmax of the raw logits; NaN when it was not asked for. */
  logprob: number;
  top: { token: number; logprob: number }[];
  /** Whether it is one of the request's stop tokens. */
  stop: boolean;
}

/** The work of one call on one timeline. The engine moves it on, step by step. */
export abstract class Task {
  readonly timeline: Timeline;
  /** Tokens to be computed. */
  pending: number[];
  /** How many of {@link pending} have been. */
  computed = 0;
  /** Set when it shall go no further; the engine lets go of it after the step at hand. */
  cancelled = false;
  /** Counts the calls: what comes later is younger. */
  order = 0;
  /** When it was handed to the engine, and when its first step began; milliseconds. */
  queuedAt = 0;
  startedAt = 0;
  /** Whether its pages may be taken, and its tokens computed again later. */
  readonly suspendable: boolean;
  readonly #prefillPath: Path;

  /** @param suspendable whether the timeline is the task's own */
  constructor(
    timeline: Timeline,
    tokens: readonly number[],
    suspendable: boolean,
  ) {
    this.timeline = timeline;
    this.pending = tokens.slice();
    this.suspendable = suspendable;
    this.#prefillPath = tokens.length >= PROJECTED_FROM
      ? "projected"
      : "absorbed";
  }

  /** Of the next row. Fixed for each token, also when it is computed again. */
  get path(): Path {
    return this.timeline.length < this.prefillEnd
      ? this.#prefillPath
      : "absorbed";
  }

  /** Positions from here on are generated tokens. */
  protected get prefillEnd(): number {
    return Infinity;
  }

  /** Tokens left to compute. */
  get left(): number {
    return this.pending.length - this.computed;
  }

  /** Rows that one step may take at most. */
  get maxChunk(): number {
    const end = this.prefillEnd - this.timeline.length;
    return end > 0 ? end : Infinity;
  }

  /** Draws that it can take from a call of several steps; 0 when it is not decoding. */
  get drawsLeft(): number {
    return 0;
  }

  /** What it wants of a chunk of `rows` rows, the next of {@link pending}. */
  abstract request(rows: number): RowRequest;

  /** Takes what was asked for of rows from `first` on, before they count as computed. */
  receive(_result: RowResult, _first: number): void {}

  /** Takes a drawn token; returns false when it wants no more. */
  accept(_draw: Draw): boolean {
    return false;
  }

  /** After a step: whether anything is left to do may have changed. */
  settle(): void {}

  /** Every token computed so far and to be computed: what it starts again with. */
  protected get everything(): readonly number[] {
    return this.pending;
  }

  /** Gives the pages back; every token will be computed again, to the same bits. */
  suspend() {
    this.pending = this.everything.slice();
    this.computed = 0;
    this.timeline.truncate(0);
  }

  /** Nothing is left to compute. */
  abstract complete(): void;

  /** It failed, was cancelled, or its model was disposed. */
  abstract fail(error: unknown): void;
}
