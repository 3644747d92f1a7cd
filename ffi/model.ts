import { DisposedError, NativeError } from "../src/errors.ts";
import { checkRoom, checkStep, logitsWidth } from "./check_step.ts";
import type { NativeDevice } from "./device.ts";
import { ControlWord, DType } from "./enums.ts";
import type { Symbols } from "./library.ts";
import type { ProgramRecorder, ValueRef, WeightRef } from "./program.ts";
import { ErrorBuffer } from "./status.ts";
import {
  Memory,
  Op,
  PoolDesc,
  ProgramDesc,
  Sampling,
  Segment,
  Step,
  Value,
  WeightDesc,
  WeightPart,
} from "./structs.ts";

/** Where one matrix of a weight is. */
export type NativeWeightPart =
  & { file: number; offset: number }
  & { scaleFile?: number; scaleOffset?: number };

/** A weight of `parts.length` matrices `[rows, cols]`. */
export interface NativeWeight {
  /** Type in the file. */
  stored: "f32" | "bf16" | "f16" | "fp8";
  /** Type wanted. */
  dtype: "f32" | "bf16";
  /** Rows of each matrix: outputs. */
  rows: number;
  /** Columns of each matrix: inputs. */
  cols: number;
  /** Places in files, or keys of generated tensors. */
  parts: readonly NativeWeightPart[] | readonly bigint[];
  /** Of generated weights: see `moela_generate`. */
  seed?: bigint;
  /** Mean of a generated weight. */
  mean?: number;
  /** Standard deviation of a generated weight. */
  deviation?: number;
}

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

const EMPTY = new Int32Array(1);

// A model that is dropped without dispose() gives its memory back; a call that runs holds it.
const finalizer = new FinalizationRegistry<() => void>((destroy) => destroy());

/** The library's model: files, weights, pools and programs, all freed together. */
export class NativeModel implements Disposable {
  /** The device that it runs on. */
  readonly device: NativeDevice;
  readonly #symbols: Symbols;
  /** Of each program. */
  readonly #logitsWidths: number[] = [];
  #handle: Deno.PointerValue;

  /** Makes an empty model. @throws NativeError */
  constructor(device: NativeDevice) {
    this.device = device;
    this.#symbols = device.library.symbols;
    const err = new ErrorBuffer();
    this.#handle = this.#symbols.moela_model_create(
      device.handle,
      err.bytes,
      err.length,
    );
    const handle = this.#handle;
    if (!handle) {
      throw new NativeError(`Cannot create the model: ${err.message()}`);
    }
    const { moela_model_destroy } = this.#symbols;
    finalizer.register(this, () => moela_model_destroy(handle), this);
  }

  /** The library's handle. @throws DisposedError after dispose() */
  get handle(): Deno.PointerObject {
    if (!this.#handle) throw new DisposedError("The model is disposed");
    return this.#handle;
  }

  /** Whether {@link NativeModel} has been disposed. */
  get disposed(): boolean {
    return this.#handle === null;
  }

  /** Maps a file for reading; returns its index. */
  addFile(path: string): number {
    const err = new ErrorBuffer();
    const bytes = new TextEncoder().encode(path + "\0");
    return err.unwrap(
      this.#symbols.moela_model_add_file(
        this.handle,
        bytes,
        err.bytes,
        err.length,
      ),
      "Cannot open the checkpoint",
    );
  }

  /**
   * Adds a weight, converting it when its type is not the one wanted.
   *
   * @param control words whose first cancels
   */
  async addWeight(
    weight: NativeWeight,
    control: Int32Array<SharedArrayBuffer> = newControl(),
  ): Promise<WeightRef> {
    const { rows, cols } = weight;
    checkRoom("load a weight", "control", control, 2);
    const err = new ErrorBuffer();
    const parts = weight.parts.map((part) =>
      typeof part === "bigint" ? { file: -1, scale_file: -1, offset: part } : {
        file: part.file,
        scale_file: part.scaleFile ?? -1,
        offset: BigInt(part.offset),
        scale_offset: BigInt(part.scaleOffset ?? 0),
      }
    );
    const id = await this.#symbols.moela_model_add_weight(
      this.handle,
      WeightDesc.encode({
        stored: DType[weight.stored],
        dtype: DType[weight.dtype],
        count: parts.length,
        rows: BigInt(rows),
        cols: BigInt(cols),
        seed: weight.seed ?? 0n,
        mean: weight.mean ?? 0,
        deviation: weight.deviation ?? 0,
      }),
      WeightPart.encodeAll(parts),
      control,
      err.bytes,
      err.length,
    );
    return {
      id: err.unwrap(id, "Cannot load a weight"),
      rows,
      cols,
      count: parts.length,
      dtype: weight.dtype,
    };
  }

  /**
   * Copies a tensor `[count, rows, cols]` in: f32 and f64 as the array is, bf16 as Uint16Array.
   */
  addConstant(
    data:
      | Float32Array<ArrayBuffer>
      | Float64Array<ArrayBuffer>
      | Uint16Array<ArrayBuffer>,
    rows: number = 1,
    cols: number = data.length / rows,
  ): WeightRef {
    const dtype = data instanceof Float64Array
      ? "f64"
      : data instanceof Uint16Array
      ? "bf16"
      : "f32";
    const count = data.length / rows / cols;
    const err = new ErrorBuffer();
    const id = this.#symbols.moela_model_add_constant(
      this.handle,
      DType[dtype],
      count,
      BigInt(rows),
      BigInt(cols),
      data,
      BigInt(data.byteLength),
      err.bytes,
      err.length,
    );
    return {
      id: err.unwrap(id, "Cannot add a constant"),
      rows,
      cols,
      count,
      dtype,
    };
  }

  /** One part of a weight as f32 `[rows, cols]`. */
  readWeight(weight: WeightRef, part: number = 0): Float32Array<ArrayBuffer> {
    const out = new Float32Array(weight.rows * weight.cols);
    const err = new ErrorBuffer();
    const size = BigInt(out.byteLength);
    err.check(
      this.#symbols.moela_model_read_weight(
        this.handle,
        weight.id,
        part,
        out,
        size,
        err.bytes,
        err.length,
      ),
      "Cannot read a weight",
    );
    return out;
  }

  /** Adds a pool of cache pages; returns its id. */
  addPool(
    pool: {
      dtype: "f32" | "bf16";
      layers: number;
      kv_lora_rank: number;
      qk_rope_head_dim: number;
      max_pages: number;
    },
  ): number {
    const err = new ErrorBuffer();
    const desc = PoolDesc.encode({ ...pool, dtype: DType[pool.dtype] });
    return err.unwrap(
      this.#symbols.moela_model_add_pool(
        this.handle,
        desc,
        err.bytes,
        err.length,
      ),
      "Cannot create a cache pool",
    );
  }

  /** Bytes of one page of a pool. */
  pageBytes(pool: number): number {
    const err = new ErrorBuffer();
    return err.unwrap(
      Number(
        this.#symbols.moela_pool_page_bytes(
          this.handle,
          pool,
          err.bytes,
          err.length,
        ),
      ),
      "Cannot tell the size of a page",
    );
  }

  /** Copies the first `tokens` tokens of a page to another. */
  copyPage(pool: number, from: number, to: number, tokens: number) {
    const err = new ErrorBuffer();
    err.check(
      this.#symbols.moela_pool_copy(
        this.handle,
        pool,
        from,
        to,
        tokens,
        err.bytes,
        err.length,
      ),
      "Cannot copy a cache page",
    );
  }

  /** Gives the memory of pages back. */
  releasePages(pool: number, pages: Int32Array<ArrayBuffer>) {
    if (pages.length === 0) return;
    const err = new ErrorBuffer();
    err.check(
      this.#symbols.moela_pool_release(
        this.handle,
        pool,
        pages,
        pages.length,
        err.bytes,
        err.length,
      ),
      "Cannot release cache pages",
    );
  }

  /** A whole page, in the layout of `moela_pool_desc`. */
  readPage(pool: number, page: number): Uint8Array<ArrayBuffer> {
    const out = new Uint8Array(this.pageBytes(pool));
    const err = new ErrorBuffer();
    const size = BigInt(out.length);
    err.check(
      this.#symbols.moela_pool_read(
        this.handle,
        pool,
        page,
        out,
        size,
        err.bytes,
        err.length,
      ),
      "Cannot read a cache page",
    );
    return out;
  }

  /** Fills a whole page. */
  writePage(pool: number, page: number, data: Uint8Array<ArrayBuffer>) {
    const err = new ErrorBuffer();
    const size = BigInt(data.length);
    err.check(
      this.#symbols.moela_pool_write(
        this.handle,
        pool,
        page,
        data,
        size,
        err.bytes,
        err.length,
      ),
      "Cannot write a cache page",
    );
  }

  /** Adds a recorded program; returns its id. */
  addProgram(
    program: ProgramRecorder,
    maxRows: number,
    maxLogits: number,
  ): number {
    const err = new ErrorBuffer();
    const { values, ops } = program;
    const id = err.unwrap(
      this.#symbols.moela_model_add_program(
        this.handle,
        ProgramDesc.encode({
          max_rows: maxRows,
          max_logits: maxLogits,
          n_values: values.length,
          n_ops: ops.length,
        }),
        Value.encodeAll(values),
        Op.encodeAll(ops),
        err.bytes,
        err.length,
      ),
      "Cannot record the program",
    );
    this.#logitsWidths[id] = logitsWidth(program);
    return id;
  }

  /** Elements of a kept value of a program's last step, f32. */
  readValue(
    program: number,
    value: ValueRef,
    count: number,
  ): Float32Array<ArrayBuffer> {
    return new Float32Array(this.#readValue(program, value, count));
  }

  /** Elements of a kept value, i32. */
  readIds(
    program: number,
    value: ValueRef,
    count: number,
  ): Int32Array<ArrayBuffer> {
    return new Int32Array(this.#readValue(program, value, count));
  }

  #readValue(program: number, value: ValueRef, count: number): ArrayBuffer {
    const out = new Uint8Array(4 * count);
    const err = new ErrorBuffer();
    err.check(
      this.#symbols.moela_value_read(
        this.handle,
        program,
        value.id,
        0n,
        BigInt(count),
        out,
        err.bytes,
        err.length,
      ),
      "Cannot read a value",
    );
    return out.buffer;
  }

  /** Writes the first elements of a kept value, for the program's next step. */
  writeValue(
    program: number,
    value: ValueRef,
    data: Float32Array<ArrayBuffer> | Int32Array<ArrayBuffer>,
  ) {
    const err = new ErrorBuffer();
    err.check(
      this.#symbols.moela_value_write(
        this.handle,
        program,
        value.id,
        0n,
        BigInt(data.length),
        data,
        err.bytes,
        err.length,
      ),
      "Cannot write a value",
    );
  }

  /** Runs a step. @throws CancelledError when its control word asked for it */
  async run(step: NativeStep): Promise<void> {
    checkStep(step, this.#logitsWidths[step.program] ?? 0);
    const err = new ErrorBuffer();
    const sampling = step.sampling ?? [];
    const desc = Step.encode({
      program: step.program,
      n_rows: step.tokens.length,
      n_absorbed: step.absorbed,
      n_segments: step.segments.length,
      n_pages: step.pages.length,
      n_logits: step.logitRows.length,
      n_sampling: sampling.length,
      n_aux: step.aux?.length ?? 0,
      entry_words: step.entryWords ?? 4,
      steps: step.steps ?? 1,
      masks_follow: step.masksFollow ? 1 : 0,
    });
    const status = await this.#symbols.moela_model_run(
      this.handle,
      desc,
      step.tokens,
      Segment.encodeAll(step.segments),
      step.pages.length > 0 ? step.pages : EMPTY,
      step.logitRows.length > 0 ? step.logitRows : EMPTY,
      step.targets ?? null,
      sampling.length > 0 ? Sampling.encodeAll(sampling) : null,
      step.aux ?? null,
      step.logits ?? null,
      step.logprobs ?? null,
      step.entries ?? null,
      step.control,
      err.bytes,
      err.length,
    );
    err.check(status, "Cannot run the step");
  }

  /** Waits for entries beyond `seen`, the call's end, or the time to pass; returns their count. */
  wait(
    control: Int32Array<SharedArrayBuffer>,
    seen: number,
    timeoutMs: number,
  ): Promise<number> {
    checkRoom("wait", "control", control, ControlWord.words);
    return this.#symbols.moela_wait(control, seen, timeoutMs);
  }

  /** Bytes that the model holds. */
  memory(): {
    weightsPrivate: number;
    weightsMapped: number;
    pools: number;
    workspace: number;
  } {
    const err = new ErrorBuffer();
    const bytes = Memory.encode({});
    err.check(
      this.#symbols.moela_model_memory(
        this.handle,
        bytes,
        err.bytes,
        err.length,
      ),
      "Cannot tell the model's memory",
    );
    const memory = Memory.decode(bytes);
    return {
      weightsPrivate: Number(memory.weights_private),
      weightsMapped: Number(memory.weights_mapped),
      pools: Number(memory.pools),
      workspace: Number(memory.workspace),
    };
  }

  /** Frees everything. No call may be running. */
  [Symbol.dispose]() {
    if (!this.#handle) return;
    finalizer.unregister(this);
    this.#symbols.moela_model_destroy(this.#handle);
    this.#handle = null;
  }
}
