import {
  DType,
  GroupScore,
  OpKind,
  Rows,
  type RowsName,
  Scoring,
} from "./enums.ts";
import type { MlaShape, RouterShape, ValueRef, WeightRef } from "./shapes.ts";
import type { Op, Value } from "./structs.ts";

type OpValues = Parameters<typeof Op.encode>[0];
type ValueValues = Parameters<typeof Value.encode>[0];

interface Operands {
  in?: readonly (ValueRef | undefined)[];
  out?: readonly ValueRef[];
  weight?: readonly (WeightRef | undefined)[];
  n?: readonly number[];
  f?: readonly number[];
  rows?: RowsName;
}

const ids = (refs: readonly ({ id: number } | undefined)[], length: number) =>
  Array.from({ length }, (_, i) => refs[i]?.id ?? -1);

/**
 * Records operations on symbolic tensors. Each method is one operation of csrc/include/moela.h,
 * where its definition is, and returns its result; `NativeModel.addProgram` checks and plans them.
 *
 * @example
 * ```ts
 * import { ProgramRecorder } from "./program.ts";
 *
 * const program = new ProgramRecorder();
 * const x = program.input(8);
 * program.linear(x, { id: 0, rows: 4, cols: 8, count: 1, dtype: "f32" });
 * ```
 */
export class ProgramRecorder {
  /**
   * Values recorded so far: fields of `moela_value`.
   * @ignore
   */
  readonly values: ValueValues[] = [];
  /**
   * Operations recorded so far: fields of `moela_op`.
   * @ignore
   */
  readonly ops: OpValues[] = [];

  /**
   * Starts an empty recording.
   *
   * @param keepAll keep every value after a step, so that tests can read it
   */
  constructor(readonly keepAll: boolean = false) {}

  /** A value, not yet computed. */
  value(
    cols: number,
    options: {
      rows?: RowsName;
      dtype?: "f32" | "i32";
      extra?: number;
      keep?: boolean;
    } = {},
  ): ValueRef {
    this.values.push({
      dtype: DType[options.dtype ?? "f32"],
      rows: Rows[options.rows ?? "all"],
      cols: BigInt(cols),
      extra: BigInt(options.extra ?? 0),
      keep: options.keep || this.keepAll ? 1 : 0,
    });
    return { id: this.values.length - 1, cols };
  }

  /** A value that the caller writes before a step. */
  input(
    cols: number,
    dtype: "f32" | "i32" = "f32",
    rows: RowsName = "all",
  ): ValueRef {
    return this.value(cols, { dtype, rows, keep: true });
  }

  #op(kind: keyof typeof OpKind, o: Operands) {
    this.ops.push({
      kind: OpKind[kind],
      rows: Rows[o.rows ?? "all"],
      in: ids(o.in ?? [], 4),
      out: ids(o.out ?? [], 2),
      weight: ids(o.weight ?? [], 2),
      n: o.n ?? [],
      f: o.f ?? [],
    });
  }

  /** Rows of the table `[vocab, d]` at the step's tokens. */
  embed(table: WeightRef): ValueRef {
    const out = this.value(table.cols);
    this.#op("embed", { out: [out], weight: [table], n: [table.cols] });
    return out;
  }

  /** Root-mean-square norm of the first `weight.cols` elements of each row. */
  rmsNorm(
    x: ValueRef,
    weight: WeightRef,
    epsilon: number,
    rows: RowsName = "all",
  ): ValueRef {
    const out = this.value(weight.cols, { rows });
    this.#op("rms_norm", {
      in: [x],
      out: [out],
      weight: [weight],
      n: [weight.cols, x.cols],
      f: [epsilon],
      rows,
    });
    return out;
  }

  /** `x W^T`, plus `residual`. */
  linear(
    x: ValueRef,
    w: WeightRef,
    residual?: ValueRef,
    rows: RowsName = "all",
  ): ValueRef {
    const out = this.value(w.rows, { rows });
    this.#op("linear", {
      in: [x, residual],
      out: [out],
      weight: [w],
      n: [w.rows, w.cols],
      rows,
    });
    return out;
  }

  /** Cosines and sines of the rows' positions, `[qk_rope_head_dim]`. */
  ropeTable(inverseFrequencies: WeightRef, factor: number): ValueRef {
    const dr = inverseFrequencies.cols * 2;
    const out = this.value(dr);
    this.#op("rope_table", {
      out: [out],
      weight: [inverseFrequencies],
      n: [dr],
      f: [factor],
    });
    return out;
  }

  /** Rotates elements `[offset, offset + table.cols)` of each head, in place. */
  rotary(
    x: ValueRef,
    table: ValueRef,
    heads: number,
    offset: number,
  ): ValueRef {
    this.#op("rotary", {
      in: [x, table],
      out: [x],
      n: [heads, x.cols / heads, offset, table.cols],
    });
    return x;
  }

  /** Norms the latent and rotates the shared key of `kv_a_proj_with_mqa`'s result into the cache. */
  cacheWrite(
    kvA: ValueRef,
    table: ValueRef,
    norm: WeightRef,
    layer: number,
    epsilon: number,
  ) {
    this.#op("cache_write", {
      in: [kvA, table],
      weight: [norm],
      n: [layer, norm.cols, table.cols],
      f: [epsilon],
    });
  }

  /** Attention of rotated queries as MQA over the latent (absorbed rows); writes into `out`. */
  mlaAbsorbed(
    q: ValueRef,
    kvB: WeightRef,
    layer: number,
    shape: MlaShape,
    scale: number,
    out: ValueRef,
  ) {
    const latent = this.mlaAbsorb(q, kvB, shape, scale);
    this.mlaExpand(this.mlaDecode(latent, layer, shape), kvB, shape, out);
  }

  /** Queries moved into the latent space, `[heads, kv_lora_rank + qk_rope_head_dim]`, scaled. */
  mlaAbsorb(
    q: ValueRef,
    kvB: WeightRef,
    shape: MlaShape,
    scale: number,
  ): ValueRef {
    const { num_attention_heads: heads, kv_lora_rank, qk_rope_head_dim } =
      shape;
    const out = this.value(heads * (kv_lora_rank + qk_rope_head_dim));
    this.#op("mla_absorb", {
      in: [q],
      out: [out],
      weight: [kvB],
      n: headDims(shape),
      f: [scale],
      rows: "absorbed",
    });
    return out;
  }

  /** Attention of absorbed queries over the cache: `[heads, kv_lora_rank]`. */
  mlaDecode(q: ValueRef, layer: number, shape: MlaShape): ValueRef {
    const { num_attention_heads: heads, kv_lora_rank, qk_rope_head_dim } =
      shape;
    const out = this.value(heads * kv_lora_rank);
    this.#op("mla_decode", {
      in: [q],
      out: [out],
      n: [layer, heads, kv_lora_rank, qk_rope_head_dim],
      rows: "absorbed",
    });
    return out;
  }

  /** Latent outputs to values, `[heads, v_head_dim]`; writes into `out`. */
  mlaExpand(latent: ValueRef, kvB: WeightRef, shape: MlaShape, out: ValueRef) {
    this.#op("mla_expand", {
      in: [latent],
      out: [out],
      weight: [kvB],
      n: headDims(shape),
      rows: "absorbed",
    });
  }

  /** Causal attention over up-projected keys and values (projected rows); writes into `out`. */
  mlaPrefill(
    q: ValueRef,
    kvB: WeightRef,
    layer: number,
    shape: MlaShape,
    scale: number,
    out: ValueRef,
  ) {
    this.#op("mla_prefill", {
      in: [q],
      out: [out],
      weight: [kvB],
      n: [layer, ...headDims(shape)],
      f: [scale],
      rows: "projected",
    });
  }

  /** Experts in descending order of choice, and their weights, from logits `[n_routed_experts]`. */
  router(
    logits: ValueRef,
    bias: WeightRef | undefined,
    shape: RouterShape,
  ): { experts: ValueRef; weights: ValueRef } {
    const k = shape.num_experts_per_tok;
    const experts = this.value(k, { dtype: "i32" });
    const weights = this.value(k);
    this.#op("router", {
      in: [logits],
      out: [experts, weights],
      weight: [bias],
      n: [
        shape.n_routed_experts,
        k,
        shape.n_group,
        shape.topk_group,
        Scoring[shape.scoring],
        GroupScore[shape.groupScore],
        shape.normalise ? 1 : 0,
      ],
      f: [shape.factor],
    });
    return { experts, weights };
  }

  /** Slots `row * k + rank` sorted by expert. */
  moePlan(experts: ValueRef, n_routed_experts: number): ValueRef {
    const k = experts.cols;
    const out = this.value(k, { dtype: "i32", extra: n_routed_experts + 1 });
    this.#op("moe_plan", {
      in: [experts],
      out: [out],
      n: [n_routed_experts, k],
    });
    return out;
  }

  /** `silu(x G^T) * (x U^T)`: for each slot of the plan with its expert, or for each row. */
  gateUp(
    x: ValueRef,
    gate: WeightRef,
    up: WeightRef,
    plan?: ValueRef,
  ): ValueRef {
    const k = plan?.cols ?? 1;
    const out = this.value(k * gate.rows);
    this.#op("gate_up", {
      in: [x, plan],
      out: [out],
      weight: [gate, up],
      n: [gate.rows, gate.cols, k, gate.count],
    });
    return out;
  }

  /** `x D^T` for each slot of the plan with its expert. */
  expertDown(x: ValueRef, down: WeightRef, plan: ValueRef): ValueRef {
    const k = plan.cols;
    const out = this.value(k * down.rows);
    this.#op("expert_down", {
      in: [x, plan],
      out: [out],
      weight: [down],
      n: [down.rows, down.cols, k, down.count],
    });
    return out;
  }

  /** The experts' results, weighted, added in order of choice, then the shared one and `residual`. */
  combine(
    experts: ValueRef,
    weights: ValueRef,
    shared: ValueRef | undefined,
    residual: ValueRef,
  ): ValueRef {
    const out = this.value(residual.cols);
    this.#op("combine", {
      in: [experts, weights, shared, residual],
      out: [out],
      n: [residual.cols, weights.cols],
    });
    return out;
  }

  /** The rows that ask for logits. */
  gather(x: ValueRef): ValueRef {
    const out = this.value(x.cols, { rows: "logits" });
    this.#op("gather", { in: [x], out: [out], n: [x.cols], rows: "logits" });
    return out;
  }

  /** What becomes of logits: copied out, scored against targets, sampled, each where asked for. */
  outputs(logits: ValueRef) {
    const n = [logits.cols];
    this.#op("logits_out", { in: [logits], n, rows: "logits" });
    this.#op("logprob", { in: [logits], n, rows: "logits" });
    this.#op("sample", { in: [logits], n, rows: "logits" });
  }
}

function headDims(shape: MlaShape): number[] {
  return [
    shape.num_attention_heads,
    shape.qk_nope_head_dim,
    shape.qk_rope_head_dim,
    shape.v_head_dim,
    shape.kv_lora_rank,
  ];
}
