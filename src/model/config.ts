/**
 * `config.json` of the DeepSeek-V2 family, checked: DeepSeek-V2, V2-Lite,
 * Coder-V2, V2.5 (`deepseek_v2`), DeepSeek-V3, R1, Moonlight (`deepseek_v3`),
 * Kimi-K2 (`kimi_k2`) and GLM-4.7-Flash (`glm4_moe_lite`).
 *
 * Where the defaults of the published implementations agree, an absent field
 * takes that default; where they differ, the field is required.
 *
 * @module
 */

import { CheckpointError } from "../errors.ts";
import { Fields, show } from "./fields.ts";
import { parseRouter } from "./router_config.ts";
import { MAX_POSITIONS, parseRope, type YarnScaling } from "./rope_scaling.ts";

export type { YarnScaling };

/** Values of `model_type` that are understood. */
export type ModelType =
  | "deepseek_v2"
  | "deepseek_v3"
  | "kimi_k2"
  | "glm4_moe_lite";

/** Block-wise FP8 (E4M3), as `quantization_config` announces it. */
export interface Fp8Quantization {
  /** The method. */
  readonly quant_method: "fp8";
  /** Rows and columns that share one scale. */
  readonly weight_block_size: readonly [128, 128];
}

/** INT8 or INT4 by groups of columns, as `examples/quantize.ts` announces it. */
export interface GroupQuantization {
  /** The method: formats of this library. */
  readonly quant_method: "moela";
  /** Type of the weights. */
  readonly weights: "int8" | "int4";
  /** Columns that share one scale. */
  readonly group_size: 128;
}

/**
 * The parsed config under the names of `config.json`. Further plain fields of
 * the file (strings, numbers, booleans) are kept as they were.
 */
export interface ModelConfig {
  /** Member of the family; decides the scaling rule of the router. */
  readonly model_type: ModelType;
  /** The class name that goes with `model_type`. */
  readonly architectures: readonly string[];
  /** Rows of the embedding and of `lm_head`. */
  readonly vocab_size: number;
  /** Width of the residual stream. */
  readonly hidden_size: number;
  /** Width of the dense MLP. */
  readonly intermediate_size: number;
  /** Width of one expert. */
  readonly moe_intermediate_size: number;
  /** Layers that are run. */
  readonly num_hidden_layers: number;
  /** Layers for multi-token prediction after the last one; not run. */
  readonly num_nextn_predict_layers: number;
  /** Query heads; each has keys and values of its own. */
  readonly num_attention_heads: number;
  /** Experts that see every token, as one MLP of their joint width; 0: none. */
  readonly n_shared_experts: number;
  /** Experts a router chooses from. */
  readonly n_routed_experts: number;
  /** Experts that it chooses for a token. */
  readonly num_experts_per_tok: number;
  /** Contiguous groups of experts. */
  readonly n_group: number;
  /** Groups that stay eligible for a token. */
  readonly topk_group: number;
  /**
   * How groups of experts are scored: not at all, by their best, or by the
   * sum of their best two after a bias.
   */
  readonly topk_method: "greedy" | "group_limited_greedy" | "noaux_tc";
  /** From router logits to scores. */
  readonly scoring_func: "softmax" | "sigmoid";
  /** Whether the chosen scores are divided by their sum. */
  readonly norm_topk_prob: boolean;
  /** Factor of the chosen scores; see `routerScaling`. */
  readonly routed_scaling_factor: number;
  /** The first layer that may have experts. */
  readonly first_k_dense_replace: number;
  /** From there on, every how manieth layer (by index) has experts. */
  readonly moe_layer_freq: number;
  /** null: queries are projected directly, by `q_proj`. */
  readonly q_lora_rank: number | null;
  /** Width of the latent that is cached. */
  readonly kv_lora_rank: number;
  /** Per head, the part of query and key without position. */
  readonly qk_nope_head_dim: number;
  /** The rotated part; its key is shared by all heads. */
  readonly qk_rope_head_dim: number;
  /** Width of one head's values. */
  readonly v_head_dim: number;
  /** Activation of the gate projections. */
  readonly hidden_act: "silu";
  /** Epsilon of the norms over the hidden size. */
  readonly rms_norm_eps: number;
  /** Base of the rotary frequencies. */
  readonly rope_theta: number;
  /** Extension of the context; null: none. */
  readonly rope_scaling: YarnScaling | null;
  /** Longest sequence, in tokens. */
  readonly max_position_embeddings: number;
  /** Whether the embedding serves as `lm_head`. */
  readonly tie_word_embeddings: boolean;
  /** No member has biases. */
  readonly attention_bias: false;
  /** First token of a text. */
  readonly bos_token_id: number | null;
  /** Tokens that end a text, in the form of the file. */
  readonly eos_token_id: number | readonly number[] | null;
  /** How projections are stored; null: as plain floats. */
  readonly quantization_config: Fp8Quantization | GroupQuantization | null;
}

/**
 * Epsilon of `q_a_layernorm` and `kv_a_layernorm`: the published
 * implementations give it to neither from `rms_norm_eps`.
 */
export const LATENT_NORM_EPS = 1e-6;

const ARCHITECTURES: Record<ModelType, string> = {
  deepseek_v2: "DeepseekV2ForCausalLM",
  deepseek_v3: "DeepseekV3ForCausalLM",
  kimi_k2: "DeepseekV3ForCausalLM",
  glm4_moe_lite: "Glm4MoeLiteForCausalLM",
};

/** Far above every release, and low enough that sizes stay exact integers. */
const MAX_WIDTH = 2 ** 20;
const MAX_LAYERS = 1000;
const MAX_HEADS = 4096;
const MAX_HEAD_DIM = 4096;

function parseModelType(fields: Fields): ModelType {
  const types = Object.keys(ARCHITECTURES) as ModelType[];
  const type = fields.choice("model_type", types);
  const architectures = fields.raw("architectures");
  if (
    architectures !== undefined &&
    !(Array.isArray(architectures) && architectures.length === 1 &&
      architectures[0] === ARCHITECTURES[type])
  ) {
    fields.refuse(
      "architectures",
      `["${ARCHITECTURES[type]}"], as model_type is "${type}"`,
    );
  }
  return type;
}

function parseQuantization(
  fields: Fields,
  file: string,
): Fp8Quantization | GroupQuantization | null {
  const name = "quantization_config";
  if (fields.raw(name) === undefined) return null;
  const quantization = new Fields(fields.raw(name), file, name);
  const quant_method = quantization.choice("quant_method", ["fp8", "moela"]);
  if (quant_method === "moela") {
    const weights = quantization.choice("weights", ["int8", "int4"]);
    if (quantization.raw("group_size") !== 128) {
      quantization.refuse("group_size", "128");
    }
    return { quant_method, weights, group_size: 128 };
  }
  quantization.choice("fmt", ["e4m3"], "e4m3");
  const block = quantization.raw("weight_block_size");
  if (
    !Array.isArray(block) || block.length !== 2 || block[0] !== 128 ||
    block[1] !== 128
  ) {
    quantization.refuse("weight_block_size", "[128, 128]");
  }
  return { quant_method, weight_block_size: [128, 128] };
}

/** Reads `bos_token_id` or `eos_token_id`: an id, a list of ids, or none. */
export function parseTokenIds(
  fields: Fields,
  name: string,
  vocab_size: number,
): readonly number[] {
  const value = fields.raw(name) ?? [];
  const ids: readonly unknown[] = Array.isArray(value) ? value : [value];
  const isId = (id: unknown): id is number =>
    typeof id === "number" && Number.isInteger(id) && id >= 0 &&
    id < vocab_size;
  if (!ids.every(isId)) {
    fields.refuse(name, `ids below vocab_size ${vocab_size}`);
  }
  return ids;
}

/** Refuses settings that would change the arithmetic without a word. */
function refuseVariants(fields: Fields): void {
  if (fields.boolean("attention_bias", false)) {
    fields.refuse("attention_bias", "false");
  }
  if (fields.raw("rope_interleave") === false) {
    fields.refuse("rope_interleave", "true: rotary pairs are adjacent");
  }
}

/**
 * Checks a parsed `config.json`.
 *
 * @param json What `JSON.parse` made of the file.
 * @param file The file's path, for messages.
 * @throws {CheckpointError} Naming file, field, what was found and what would
 * be right: another architecture, an absent field, a size of zero or beyond
 * reason, a router that cannot choose its experts.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { parseConfig } from "./config.ts";
 *
 * const path = "models/nano/config.json";
 * const config = parseConfig(JSON.parse(await Deno.readTextFile(path)), path);
 * assertEquals(config.kv_lora_rank, 64);
 * ```
 */
export function parseConfig(json: unknown, file: string): ModelConfig {
  const fields = new Fields(json, file);
  const model_type = parseModelType(fields);
  refuseVariants(fields);
  const width = (name: string) =>
    fields.integer(name, { min: 1, max: MAX_WIDTH });
  const headDim = (name: string) =>
    fields.integer(name, { min: 1, max: MAX_HEAD_DIM });

  const qk_rope_head_dim = headDim("qk_rope_head_dim");
  if (qk_rope_head_dim % 2 !== 0) {
    fields.refuse("qk_rope_head_dim", "even: it is rotated in pairs");
  }
  // The published defaults differ, so a file must say which form it has.
  if (!fields.has("q_lora_rank")) {
    fields.refuse("q_lora_rank", "an integer, or null for a plain q_proj");
  }
  const vocab_size = fields.integer("vocab_size", { min: 1, max: 2 ** 24 });
  const bos = parseTokenIds(fields, "bos_token_id", vocab_size);
  if (bos.length > 1) fields.refuse("bos_token_id", "one id");
  const eos = parseTokenIds(fields, "eos_token_id", vocab_size);
  const router = parseRouter(fields, model_type);
  const moe_intermediate_size = width("moe_intermediate_size");
  if (router.n_shared_experts * moe_intermediate_size > MAX_WIDTH) {
    throw new CheckpointError(
      `${file}: n_shared_experts ${show(router.n_shared_experts)} times ` +
        `moe_intermediate_size ${moe_intermediate_size} must be at most ` +
        `${MAX_WIDTH}`,
    );
  }

  return Object.freeze({
    ...fields.scalars(),
    model_type,
    architectures: [ARCHITECTURES[model_type]],
    vocab_size,
    hidden_size: width("hidden_size"),
    intermediate_size: width("intermediate_size"),
    moe_intermediate_size,
    num_hidden_layers: fields.integer("num_hidden_layers", {
      min: 1,
      max: MAX_LAYERS,
    }),
    num_nextn_predict_layers: fields.integer("num_nextn_predict_layers", {
      min: 0,
      max: MAX_LAYERS,
      fallback: 0,
    }),
    num_attention_heads: fields.integer("num_attention_heads", {
      min: 1,
      max: MAX_HEADS,
    }),
    ...router,
    first_k_dense_replace: fields.integer("first_k_dense_replace", {
      min: 0,
      max: MAX_LAYERS,
    }),
    moe_layer_freq: fields.integer("moe_layer_freq", {
      min: 1,
      max: MAX_LAYERS,
      fallback: 1,
    }),
    q_lora_rank: fields.integer("q_lora_rank", {
      min: 1,
      max: MAX_WIDTH,
      fallback: null,
    }),
    kv_lora_rank: fields.integer("kv_lora_rank", { min: 1, max: MAX_WIDTH }),
    qk_nope_head_dim: headDim("qk_nope_head_dim"),
    qk_rope_head_dim,
    v_head_dim: headDim("v_head_dim"),
    hidden_act: fields.choice("hidden_act", ["silu"], "silu"),
    rms_norm_eps: fields.number("rms_norm_eps", { min: 1e-12, max: 1 }),
    ...parseRope(fields, file),
    max_position_embeddings: fields.integer("max_position_embeddings", {
      min: 1,
      max: MAX_POSITIONS,
    }),
    tie_word_embeddings: fields.boolean("tie_word_embeddings", false),
    attention_bias: false,
    bos_token_id: bos[0] ?? null,
    eos_token_id: Array.isArray(fields.raw("eos_token_id"))
      ? eos
      : eos[0] ?? null,
    quantization_config: parseQuantization(fields, file),
  });
}

/** Whether a layer has experts; the others have one dense MLP. */
export function isMoeLayer(config: ModelConfig, layer: number): boolean {
  return layer >= config.first_k_dense_replace &&
    layer % config.moe_layer_freq === 0;
}
