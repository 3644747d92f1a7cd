import { ControlWord } from "./enums.ts";

/** Consecutive rows of one sequence: fields of `moela_segment`. */
export interface SegmentValues {
  /** First row. */
  row: number;
  /** How many rows. */
  rows: number;
  /** Position of the first row in its sequence. */
  position: number;
  /** Id of the pool that holds the sequence. */
  pool: number;
  /** First entry of the sequence in `pages`. */
  page: number;
  /** Entries of the sequence. */
  n_pages: number;
}

/**
 * How the token after a logits row is drawn: fields of `moela_sampling`. What is absent is 0, so
 * `top_p`, `typical_p` and `repetition_penalty` must be given, and `mask` where none is meant.
 */
export interface SamplingValues {
  /** 0: greedy. */
  temperature?: number;
  /** 1: off. */
  top_p?: number;
  /** 0: off. */
  min_p?: number;
  /** 1: off. */
  typical_p?: number;
  /** 1: off. */
  repetition_penalty?: number;
  /** 0: off. */
  presence_penalty?: number;
  /** 0: off. */
  frequency_penalty?: number;
  /** 0: off. */
  top_k?: number;
  /** Key of the draw. */
  seed?: bigint;
  /** Of the token to be drawn, from 0: counter of the draw. */
  index?: number;
  /** First entry of the history in `aux`: prompt tokens, then output tokens. */
  history?: number;
  /** Prompt tokens of the history. */
  n_prompt?: number;
  /** Output tokens of the history. */
  n_output?: number;
  /** First entry in `aux` of the pairs token, bits of an f32. */
  bias?: number;
  /** How many pairs. */
  n_bias?: number;
  /** First entry in `aux` of the bits of allowed tokens; -1: all are. */
  mask?: number;
  /** First entry in `aux` of the tokens that end the sequence. */
  stop?: number;
  /** How many of them. */
  n_stop?: number;
  /** Until this index the stop tokens are not drawn. */
  min_index?: number;
  /** How many of the most likely to report; -1: not even the drawn one's own. */
  top_logprobs?: number;
  /** Whose next token it is. */
  segment?: number;
}

/** The arguments of a step: see `moela_model_run`. */
export interface NativeStep {
  /** Id of the program to replay. */
  program: number;
  /** Ids, one for each row. */
  tokens: Int32Array<ArrayBuffer>;
  /** Rows on the absorbed path; they come first. */
  absorbed: number;
  /** Sequences, in order of their rows. */
  segments: readonly SegmentValues[];
  /** The sequences' page tables, one after the other. */
  pages: Int32Array<ArrayBuffer>;
  /** Rows that ask for logits, ascending. */
  logitRows: Int32Array<ArrayBuffer>;
  /** For each of them a token whose log-probability is wanted, or -1. */
  targets?: Int32Array<ArrayBuffer>;
  /** For each of them how the next token is drawn. */
  sampling?: readonly SamplingValues[];
  /** Lists that `sampling` points into. */
  aux?: Int32Array<ArrayBuffer>;
  /** Gets the logits, `[logitRows.length, vocab_size]`. */
  logits?: Float32Array<ArrayBuffer>;
  /** Gets the log-probabilities of `targets`, `[logitRows.length]`. */
  logprobs?: Float32Array<ArrayBuffer>;
  /** In shared memory, to be read while the call runs. */
  entries?: Int32Array<SharedArrayBuffer>;
  /** Words from one entry to the next; default 4. */
  entryWords?: number;
  /** Steps to run, each fed with what the one before drew; default 1. */
  steps?: number;
  /** The masks in `aux` are written while the step runs: see `masks_follow`. */
  masksFollow?: boolean;
  /** `ControlWord.words` words in shared memory. */
  control: Int32Array<SharedArrayBuffer>;
}

/** A fresh set of control words. */
export function newControl(): Int32Array<SharedArrayBuffer> {
  return new Int32Array(new SharedArrayBuffer(4 * ControlWord.words));
}
