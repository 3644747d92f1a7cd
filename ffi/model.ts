import { DisposedError, NativeError } from "../src/errors.ts";
import { checkRoom, checkStep, logitsWidth } from "./check_step.ts";
import type { NativeDevice } from "./device.ts";
import { ControlWord, DType } from "./enums.ts";
import { PageCalls } from "./pages.ts";
import type { ProgramRecorder } from "./program.ts";
import type { CacheDType } from "./sequences.ts";
import type { ValueRef, WeightRef } from "./shapes.ts";
import { ErrorBuffer } from "./status.ts";
import { type NativeStep, newControl } from "./step.ts";
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
import type { NativeWeight } from "./weight.ts";

const EMPTY = new Int32Array(1);

// A model that is dropped without dispose() gives its memory back; a call that runs holds it.
const finalizer = new FinalizationRegistry<() => void>((destroy) => destroy());

/** The library's model: files, weights, pools and programs, all freed together. */
export class NativeModel extends PageCalls implements Disposable {
  /** The device that it runs on. */
  readonly device: NativeDevice;
  /** Of each program. */
  readonly #logitsWidths: number[] = [];
  #handle: Deno.PointerValue;

  /** Makes an empty model. @throws NativeError */
  constructor(device: NativeDevice) {
    super(device.library.symbols);
    this.device = device;
    const err = new ErrorBuffer();
    this.#handle = this.symbols.moela_model_create(
      device.handle,
      err.bytes,
      err.length,
    );
    const handle = this.#handle;
    if (!handle) {
      throw new NativeError(`Cannot create the model: ${err.message()}`);
    }
    const { moela_model_destroy } = this.symbols;
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
      this.symbols.moela_model_add_file(
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
    const id = await this.symbols.moela_model_add_weight(
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
    const id = this.symbols.moela_model_add_constant(
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
      this.symbols.moela_model_read_weight(
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
      dtype: CacheDType;
      layers: number;
      kv_lora_rank: number;
      qk_rope_head_dim: number;
      max_pages: number;
    },
  ): number {
    const err = new ErrorBuffer();
    const desc = PoolDesc.encode({ ...pool, dtype: DType[pool.dtype] });
    return err.unwrap(
      this.symbols.moela_model_add_pool(
        this.handle,
        desc,
        err.bytes,
        err.length,
      ),
      "Cannot create a cache pool",
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
      this.symbols.moela_model_add_program(
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
      this.symbols.moela_value_read(
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
      this.symbols.moela_value_write(
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
    const status = await this.symbols.moela_model_run(
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
    return this.symbols.moela_wait(control, seen, timeoutMs);
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
      this.symbols.moela_model_memory(
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
    this.symbols.moela_model_destroy(this.#handle);
    this.#handle = null;
  }
}
