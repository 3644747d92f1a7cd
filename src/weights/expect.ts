/**
 * Which tensors a checkpoint of a config must hold, and the check that it does.
 *
 * @module
 */

import { CheckpointError } from "../errors.ts";
import { isMoeLayer, type ModelConfig } from "../model/config.ts";
import { show } from "../model/fields.ts";
import type { CheckpointTensor } from "./checkpoint.ts";

/** One tensor that a config calls for. */
export interface ExpectedTensor {
  /** Full name in the checkpoint. */
  readonly name: string;
  /** Sizes as stored: `[out, in]` for a projection. */
  readonly shape: readonly number[];
  /** Stored types with scales that it may have. */
  readonly scaled: readonly string[];
  /** Whether it may be absent. */
  readonly optional: boolean;
}

/** Rows and columns that share one scale of an FP8 weight. */
export const FP8_BLOCK = 128;

const FLOAT_DTYPES: readonly string[] = ["F32", "BF16", "F16"];

/** Columns that share a scale of an INT8 or INT4 weight. */
export const GROUP = 128;

/** What a stored type with scales is beside the matrix `[rows, cols]` that it stands for. */
interface ScaledType {
  /** What follows the weight's name in that of its scales. */
  suffix: string;
  /** Sizes of the weight as stored. */
  shape(rows: number, cols: number): number[];
  /** Sizes of the scales. */
  scales(rows: number, cols: number): number[];
  /** Type of the scales. */
  scaleDtype: "F32" | "BF16" | "U32";
}

/** The formats of `moela_weight_desc`, by stored type: FP8, INT8 and INT4. */
export const SCALED_TYPES: Readonly<Record<string, ScaledType>> = {
  F8_E4M3: {
    suffix: "_scale_inv",
    shape: (rows, cols) => [rows, cols],
    scales: (rows, cols) => [
      Math.ceil(rows / FP8_BLOCK),
      Math.ceil(cols / FP8_BLOCK),
    ],
    scaleDtype: "F32",
  },
  I8: {
    suffix: "_scale",
    shape: (rows, cols) => [rows, cols],
    scales: (rows, cols) => [rows, Math.ceil(cols / GROUP)],
    scaleDtype: "BF16",
  },
  U8: {
    suffix: "_scale",
    shape: (rows, cols) => [rows, 32 * Math.ceil(cols / 64)],
    scales: (rows, cols) => [rows, Math.ceil(cols / GROUP)],
    scaleDtype: "U32",
  },
};

/** What follows the name of a weight of this type in that of its scales; undefined without. */
export function scaleSuffix(dtype: string): string | undefined {
  return Object.hasOwn(SCALED_TYPES, dtype)
    ? SCALED_TYPES[dtype].suffix
    : undefined;
}

function exact(name: string, ...shape: number[]): ExpectedTensor {
  return { name, shape, scaled: [], optional: false };
}

/** The weight of a projection from `columns` to `rows`. */
function linear(
  name: string,
  rows: number,
  columns: number,
  scaled: readonly string[] = Object.keys(SCALED_TYPES),
): ExpectedTensor {
  return {
    name: `${name}.weight`,
    shape: [rows, columns],
    scaled,
    optional: false,
  };
}

function* expectedMlp(prefix: string, hidden: number, width: number) {
  yield linear(`${prefix}.gate_proj`, width, hidden);
  yield linear(`${prefix}.up_proj`, width, hidden);
  yield linear(`${prefix}.down_proj`, hidden, width);
}

function* expectedAttention(
  prefix: string,
  config: ModelConfig,
): Generator<ExpectedTensor> {
  const { hidden_size, q_lora_rank, kv_lora_rank } = config;
  const heads = config.num_attention_heads;
  const { qk_nope_head_dim, qk_rope_head_dim, v_head_dim } = config;
  const queries = heads * (qk_nope_head_dim + qk_rope_head_dim);
  if (q_lora_rank === null) {
    yield linear(`${prefix}.q_proj`, queries, hidden_size);
  } else {
    yield linear(`${prefix}.q_a_proj`, q_lora_rank, hidden_size);
    yield exact(`${prefix}.q_a_layernorm.weight`, q_lora_rank);
    yield linear(`${prefix}.q_b_proj`, queries, q_lora_rank);
  }
  yield linear(
    `${prefix}.kv_a_proj_with_mqa`,
    kv_lora_rank + qk_rope_head_dim,
    hidden_size,
  );
  yield exact(`${prefix}.kv_a_layernorm.weight`, kv_lora_rank);
  yield linear(
    `${prefix}.kv_b_proj`,
    heads * (qk_nope_head_dim + v_head_dim),
    kv_lora_rank,
    // It is read by columns, too.
    ["F8_E4M3", "I8"],
  );
  yield linear(`${prefix}.o_proj`, hidden_size, heads * v_head_dim);
}

function* expectedMoe(
  prefix: string,
  config: ModelConfig,
): Generator<ExpectedTensor> {
  const { hidden_size, moe_intermediate_size, n_routed_experts } = config;
  yield exact(`${prefix}.gate.weight`, n_routed_experts, hidden_size);
  if (config.topk_method === "noaux_tc") {
    yield exact(`${prefix}.gate.e_score_correction_bias`, n_routed_experts);
  }
  for (let expert = 0; expert < n_routed_experts; expert++) {
    yield* expectedMlp(
      `${prefix}.experts.${expert}`,
      hidden_size,
      moe_intermediate_size,
    );
  }
  if (config.n_shared_experts > 0) {
    yield* expectedMlp(
      `${prefix}.shared_experts`,
      hidden_size,
      config.n_shared_experts * moe_intermediate_size,
    );
  }
}

/**
 * The tensors of a config, in the order of the layers. Lazily: a hostile
 * config may ask for millions.
 */
export function* expectedTensors(
  config: ModelConfig,
): Generator<ExpectedTensor> {
  const { vocab_size, hidden_size } = config;
  yield exact("model.embed_tokens.weight", vocab_size, hidden_size);
  for (let layer = 0; layer < config.num_hidden_layers; layer++) {
    const prefix = `model.layers.${layer}`;
    yield exact(`${prefix}.input_layernorm.weight`, hidden_size);
    yield* expectedAttention(`${prefix}.self_attn`, config);
    yield exact(`${prefix}.post_attention_layernorm.weight`, hidden_size);
    yield* isMoeLayer(config, layer)
      ? expectedMoe(`${prefix}.mlp`, config)
      : expectedMlp(`${prefix}.mlp`, hidden_size, config.intermediate_size);
  }
  yield exact("model.norm.weight", hidden_size);
  yield {
    ...linear("lm_head", vocab_size, hidden_size),
    optional: config.tie_word_embeddings,
  };
}

/** Layers after the last one that are for multi-token prediction. */
function predictionLayers(
  config: ModelConfig,
  names: Iterable<string>,
): ReadonlySet<number> {
  const layers = new Set<number>();
  if (config.model_type === "deepseek_v2") return layers;
  const first = config.num_hidden_layers;
  for (let i = 0; i < config.num_nextn_predict_layers; i++) {
    layers.add(first + i);
  }
  // Some configs do not count them; what only they have tells them apart from
  // a config that was cut short.
  const mark = /^model\.layers\.(\d+)\.(?:enorm|hnorm|eh_proj|shared_head)\./;
  for (const name of names) {
    const layer = Number(mark.exec(name)?.[1] ?? -1);
    if (layer >= first) layers.add(layer);
  }
  return layers;
}

function checkShape(
  tensor: CheckpointTensor,
  name: string,
  shape: readonly number[],
): void {
  if (
    tensor.shape.length !== shape.length ||
    tensor.shape.some((size, i) => size !== shape[i])
  ) {
    throw new CheckpointError(
      `${tensor.path}: tensor ${show(name)} has shape ${show(tensor.shape)}, ` +
        `and config.json asks for ${show(shape)}`,
    );
  }
}

function checkDtype(
  tensor: CheckpointTensor,
  name: string,
  dtypes: readonly string[],
): void {
  if (!dtypes.includes(tensor.dtype)) {
    throw new CheckpointError(
      `${tensor.path}: tensor ${show(name)} is ${tensor.dtype}, and must be ` +
        dtypes.join(" or "),
    );
  }
}

/**
 * Checks that a checkpoint holds the tensors of its config, and no others but
 * those that are known to be of no use: layers for multi-token prediction and
 * `rotary_emb.inv_freq`.
 *
 * @param config The parsed config.
 * @param tensors All tensors of all shards by name.
 * @param path The checkpoint's folder, for messages.
 * @throws {CheckpointError} Naming file, tensor, expected and found.
 */
export function checkTensors(
  config: ModelConfig,
  tensors: ReadonlyMap<string, CheckpointTensor>,
  path: string,
): void {
  const known = new Set<string>();
  const missing = (name: string, shape: readonly number[], why = "") =>
    new CheckpointError(
      `${path}: tensor ${show(name)} of shape ${show(shape)} is missing${why}`,
    );
  for (const { name, shape, ...rules } of expectedTensors(config)) {
    known.add(name);
    const tensor = tensors.get(name);
    if (tensor === undefined) {
      if (rules.optional) continue;
      throw missing(name, shape);
    }
    const type = rules.scaled.includes(tensor.dtype)
      ? SCALED_TYPES[tensor.dtype]
      : undefined;
    if (type === undefined) {
      checkShape(tensor, name, shape);
      checkDtype(tensor, name, [...FLOAT_DTYPES, ...rules.scaled]);
      continue;
    }
    const [rows, cols] = shape;
    checkShape(tensor, name, type.shape(rows, cols));
    const scaleName = name + type.suffix;
    const scaleShape = type.scales(rows, cols);
    const scale = tensors.get(scaleName);
    if (scale === undefined) {
      throw missing(
        scaleName,
        scaleShape,
        `: ${show(name)} is ${tensor.dtype}`,
      );
    }
    known.add(scaleName);
    checkShape(scale, scaleName, scaleShape);
    checkDtype(scale, scaleName, [type.scaleDtype]);
  }
  const prediction = predictionLayers(config, tensors.keys());
  for (const [name, tensor] of tensors) {
    if (known.has(name) || name.endsWith(".rotary_emb.inv_freq")) continue;
    const layer = /^model\.layers\.(\d+)\./.exec(name)?.[1];
    if (layer !== undefined && prediction.has(Number(layer))) continue;
    throw new CheckpointError(
      `${tensor.path}: tensor ${show(name)} has no place in a ` +
        `${config.model_type} model of this config.json`,
    );
  }
}
