import { NativeDevice } from "./device.ts";
import { type NativeDeviceOptions } from "./device.ts";
import { NativeModel } from "./model.ts";
import { ProgramRecorder } from "./program.ts";
import {
  ALONE,
  type CacheDType,
  type CacheRows,
  type LatentCache,
  layOut,
  type RunOptions,
} from "./sequences.ts";
import type { MlaShape, RouterShape, ValueRef, WeightRef } from "./shapes.ts";
import { newControl, type SamplingValues } from "./step.ts";
import { PAGE_TOKENS } from "./enums.ts";

/** A tensor `[count, rows, cols]` on the device. */
export type Tensor = WeightRef;

/** Rows of activations, `[rows, cols]` row-major. */
export type Activations = Float32Array<ArrayBuffer>;

/**
 * The library's operations, each by itself, under the names that they have in C.
 *
 * @example Root-mean-square norm of two rows
 * ```ts
 * import { Kernels } from "./kernels.ts";
 *
 * using kernels = new Kernels();
 * const weight = kernels.tensor(new Float32Array([1, 1]));
 * const y = await kernels.rms_norm(new Float32Array([3, 4, 1, 1]), weight, 1e-6);
 * console.assert(Math.abs(y[2] - 1) < 1e-3);
 * ```
 */
export class Kernels implements Disposable {
  /** Where everything runs. */
  readonly device: NativeDevice;
  /** Owner of the tensors, caches and programs. */
  readonly model: NativeModel;
  readonly #programs = new Map<string, number>();
  #last: Promise<unknown> = Promise.resolve();

  /** Opens a device of its own. */
  constructor(options: NativeDeviceOptions = {}) {
    this.device = new NativeDevice(options);
    this.model = new NativeModel(this.device);
  }

  /** Copies a tensor to the device: f32, f64, or bf16 as Uint16Array. */
  tensor(
    data:
      | Float32Array<ArrayBuffer>
      | Float64Array<ArrayBuffer>
      | Uint16Array<ArrayBuffer>,
    rows?: number,
    cols?: number,
  ): Tensor {
    return this.model.addConstant(data, rows, cols);
  }

  /**
   * An empty latent cache with room for `tokens`; `shuffle` reverses the order of its pages.
   *
   * @throws Error when the type does not take the widths: int6 needs multiples of 16
   */
  cache(
    shape: Pick<MlaShape, "kv_lora_rank" | "qk_rope_head_dim">,
    tokens: number,
    options: { dtype?: CacheDType; layers?: number; shuffle?: boolean } = {},
  ): LatentCache {
    const n = Math.ceil(tokens / PAGE_TOKENS);
    const { kv_lora_rank, qk_rope_head_dim } = shape;
    const pool = this.model.addPool({
      dtype: options.dtype ?? "f32",
      layers: options.layers ?? 1,
      kv_lora_rank,
      qk_rope_head_dim,
      max_pages: n,
    });
    const pages = Int32Array.from(
      { length: n },
      (_, i) => options.shuffle ? n - 1 - i : i,
    );
    return { pool, pages, kv_lora_rank, qk_rope_head_dim };
  }

  /**
   * Records operations and runs them once.
   *
   * @param record gets a recorder and returns the inputs with their data, and the outputs
   * @returns the outputs, `[rows, cols]` each; those of i32 as Int32Array through `ids`
   */
  async run(
    record: (program: ProgramRecorder) => {
      inputs?: readonly (readonly [
        ValueRef,
        Float32Array<ArrayBuffer> | Int32Array<ArrayBuffer>,
      ])[];
      outputs?: readonly ValueRef[];
      ids?: readonly ValueRef[];
    },
    options: RunOptions,
  ): Promise<
    { outputs: Float32Array<ArrayBuffer>[]; ids: Int32Array<ArrayBuffer>[] }
  > {
    const recorder = new ProgramRecorder(options.keep !== "outputs");
    const { inputs = [], outputs = [], ids = [] } = record(recorder);
    for (const { id } of [...outputs, ...ids]) recorder.values[id].keep = 1;
    const rows = options.rows;
    const maxLogits = options.maxLogits ?? rows;
    const key = JSON.stringify(
      [recorder.values, recorder.ops, rows, maxLogits],
      (_, value) => typeof value === "bigint" ? Number(value) : value,
    );
    const program = this.#programs.get(key) ??
      this.model.addProgram(recorder, rows, maxLogits);
    this.#programs.set(key, program);
    // One at a time: programs share their workspace.
    const previous = this.#last;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#last = promise;
    await previous;
    const elements = (value: ValueRef) => {
      const { extra, rows: whose } = recorder.values[value.id];
      const count = whose === 3 ? options.logitRows?.length ?? 0 : rows;
      return count * value.cols + Number(extra);
    };
    try {
      for (const [value, data] of inputs) {
        this.model.writeValue(program, value, data);
      }
      await this.model.run({
        program,
        tokens: Int32Array.from(options.tokens ?? new Array(rows).fill(0)),
        absorbed: options.absorbed ?? rows,
        ...layOut(options.sequences ?? [], rows),
        logitRows: Int32Array.from(options.logitRows ?? []),
        control: newControl(),
        ...options.step,
      });
      return {
        outputs: outputs.map((value) =>
          this.model.readValue(program, value, elements(value))
        ),
        ids: ids.map((value) =>
          this.model.readIds(program, value, elements(value))
        ),
      };
    } finally {
      resolve();
    }
  }

  async #one(
    rows: number,
    record: (program: ProgramRecorder) => {
      inputs: readonly (readonly [ValueRef, Activations])[];
      output: ValueRef;
    },
    options: Omit<RunOptions, "rows"> = {},
  ): Promise<Activations> {
    const { outputs } = await this.run((program) => {
      const { inputs, output } = record(program);
      return { inputs, outputs: [output] };
    }, { rows, ...options });
    return outputs[0];
  }

  /** `x / rms(x) * weight` for rows `[weight.cols]`. */
  rms_norm(
    x: Activations,
    weight: Tensor,
    epsilon: number,
  ): Promise<Activations> {
    return this.#one(x.length / weight.cols, (p) => {
      const input = p.input(weight.cols);
      return {
        inputs: [[input, x]],
        output: p.rmsNorm(input, weight, epsilon),
      };
    });
  }

  /** `x W^T (+ residual)` for rows `[W.cols]`, W `[out, in]`. */
  linear(
    x: Activations,
    w: Tensor,
    residual?: Activations,
  ): Promise<Activations> {
    return this.#one(x.length / w.cols, (p) => {
      const input = p.input(w.cols);
      const added = residual && p.input(w.rows);
      return {
        inputs: added && residual
          ? [[input, x], [added, residual]]
          : [[input, x]],
        output: p.linear(input, w, added),
      };
    });
  }

  /**
   * Rotates pairs (2i, 2i + 1) of the last `2 * frequencies.cols` elements of each head by
   * position times inverse frequency; rows `[heads, head_dim]` at consecutive positions.
   *
   * @param frequencies f64 `[qk_rope_head_dim / 2]`
   */
  rotary(
    x: Activations,
    heads: number,
    head_dim: number,
    position: number,
    frequencies: Tensor,
    factor: number = 1,
  ): Promise<Activations> {
    const rows = x.length / heads / head_dim;
    return this.#one(rows, (p) => {
      const input = p.input(heads * head_dim);
      const table = p.ropeTable(frequencies, factor);
      const offset = head_dim - table.cols;
      return {
        inputs: [[input, x]],
        output: p.rotary(input, table, heads, offset),
      };
    }, { step: { segments: [{ ...ALONE, rows, position }] } });
  }

  /**
   * Writes rows `[kv_lora_rank + qk_rope_head_dim]` of `kv_a_proj_with_mqa` into a cache: the
   * latent normed, the shared key rotated.
   */
  async cache_write(
    kvA: Activations,
    norm: Tensor,
    frequencies: Tensor,
    where: CacheRows,
    epsilon: number,
    layer: number = 0,
  ): Promise<void> {
    const width = where.cache.kv_lora_rank + where.cache.qk_rope_head_dim;
    await this.run((p) => {
      const input = p.input(width);
      p.cacheWrite(input, p.ropeTable(frequencies, 1), norm, layer, epsilon);
      return { inputs: [[input, kvA]] };
    }, { rows: where.rows, sequences: [where] });
  }

  /**
   * MLA over the latent: rotated queries `[heads, qk_nope_head_dim + qk_rope_head_dim]` attend to
   * the cache up to their own position, weights absorbed; `[heads, v_head_dim]`.
   */
  mla_decode(
    q: Activations,
    kvB: Tensor,
    shape: MlaShape,
    scale: number,
    sequences: readonly CacheRows[],
    layer: number = 0,
  ): Promise<Activations> {
    return this.#attend(q, shape, sequences, (p, input, out) => {
      p.mlaAbsorbed(input, kvB, layer, shape, scale, out);
    });
  }

  /** The same function as {@link mla_decode}, over keys and values up-projected tile by tile. */
  mla_prefill(
    q: Activations,
    kvB: Tensor,
    shape: MlaShape,
    scale: number,
    sequences: readonly CacheRows[],
    layer: number = 0,
  ): Promise<Activations> {
    return this.#attend(q, shape, sequences, (p, input, out) => {
      p.mlaPrefill(input, kvB, layer, shape, scale, out);
    }, 0);
  }

  #attend(
    q: Activations,
    shape: MlaShape,
    sequences: readonly CacheRows[],
    record: (p: ProgramRecorder, q: ValueRef, out: ValueRef) => void,
    absorbed?: number,
  ) {
    const heads = shape.num_attention_heads;
    const cols = heads * (shape.qk_nope_head_dim + shape.qk_rope_head_dim);
    return this.#one(q.length / cols, (p) => {
      const input = p.input(cols);
      const output = p.value(heads * shape.v_head_dim);
      record(p, input, output);
      return { inputs: [[input, q]], output };
    }, { sequences, absorbed });
  }

  /** Experts in order of choice and their weights, for logits `[rows, n_routed_experts]`. */
  async router(
    logits: Activations,
    shape: RouterShape,
    bias?: Tensor,
  ): Promise<{ experts: Int32Array<ArrayBuffer>; weights: Activations }> {
    const rows = logits.length / shape.n_routed_experts;
    const { outputs, ids } = await this.run((p) => {
      const input = p.input(shape.n_routed_experts);
      const { experts, weights } = p.router(input, bias, shape);
      return {
        inputs: [[input, logits]],
        outputs: [weights],
        ids: [experts],
      };
    }, { rows });
    return { experts: ids[0], weights: outputs[0] };
  }

  /**
   * SwiGLU experts of rows `[gate.cols]`: for `experts` `[rows, k]` and their `weights`, the sum of
   * `w D_e(silu(G_e x) * U_e x)`, in order of choice.
   */
  async expert_gemm(
    x: Activations,
    experts: Int32Array<ArrayBuffer>,
    weights: Activations,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
  ): Promise<Activations> {
    const rows = x.length / gate.cols;
    const k = experts.length / rows;
    const { outputs } = await this.run((p) => {
      const input = p.input(gate.cols);
      const chosen = p.input(k, "i32");
      const factors = p.input(k);
      const zero = p.input(gate.cols);
      const plan = p.moePlan(chosen, gate.count);
      const slots = p.expertDown(p.gateUp(input, gate, up, plan), down, plan);
      return {
        inputs: [[input, x], [chosen, experts], [factors, weights], [
          zero,
          new Float32Array(x.length),
        ]],
        outputs: [p.combine(slots, factors, undefined, zero)],
      };
    }, { rows });
    return outputs[0];
  }

  /** Draws a token from each row of logits; see `moela_sampling` for the fields. */
  async sample(
    logits: Activations,
    samplings: readonly SamplingValues[],
    aux: Int32Array<ArrayBuffer> = new Int32Array(1),
    entryWords: number = 4,
  ): Promise<Int32Array<ArrayBuffer>> {
    const rows = samplings.length;
    const entries = new Int32Array(
      new SharedArrayBuffer(4 * rows * entryWords),
    );
    await this.run((p) => {
      const input = p.input(logits.length / rows, "f32", "logits");
      p.outputs(input);
      return { inputs: [[input, logits]] };
    }, {
      rows,
      logitRows: Array.from({ length: rows }, (_, i) => i),
      step: { sampling: samplings, aux, entries, entryWords },
    });
    return new Int32Array(entries);
  }

  /** Frees the tensors, the caches and the device. */
  [Symbol.dispose]() {
    this.model[Symbol.dispose]();
    this.device[Symbol.dispose]();
  }
}
