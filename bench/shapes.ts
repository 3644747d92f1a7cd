/**
 * Shapes of published models, as the `config.json` of a checkpoint: DeepSeek-V2 and V2-Lite
 * (arXiv 2405.04434), DeepSeek-V3 (arXiv 2412.19437), Moonlight-16B-A3B (arXiv 2502.16982).
 *
 * @module
 */

/** The fields of a `config.json`. */
export type ConfigJson = Readonly<Record<string, unknown>>;

const yarn = (mscale: number): ConfigJson => ({
  type: "yarn",
  factor: 40,
  beta_fast: 32,
  beta_slow: 1,
  mscale,
  mscale_all_dim: mscale,
  original_max_position_embeddings: 4096,
});

const FAMILY: ConfigJson = {
  kv_lora_rank: 512,
  qk_nope_head_dim: 128,
  qk_rope_head_dim: 64,
  v_head_dim: 128,
  moe_layer_freq: 1,
  first_k_dense_replace: 1,
  hidden_act: "silu",
  rms_norm_eps: 1e-6,
  rope_theta: 10000,
  attention_bias: false,
  tie_word_embeddings: false,
  max_position_embeddings: 163840,
};

const V2: ConfigJson = {
  ...FAMILY,
  architectures: ["DeepseekV2ForCausalLM"],
  model_type: "deepseek_v2",
  hidden_size: 5120,
  num_hidden_layers: 60,
  num_attention_heads: 128,
  q_lora_rank: 1536,
  intermediate_size: 12288,
  moe_intermediate_size: 1536,
  n_routed_experts: 160,
  num_experts_per_tok: 6,
  n_shared_experts: 2,
  n_group: 8,
  topk_group: 3,
  topk_method: "group_limited_greedy",
  scoring_func: "softmax",
  norm_topk_prob: false,
  routed_scaling_factor: 16,
  rope_scaling: yarn(0.707),
  vocab_size: 102400,
  bos_token_id: 100000,
  eos_token_id: 100001,
};

const V2_LITE: ConfigJson = {
  ...V2,
  hidden_size: 2048,
  num_hidden_layers: 27,
  num_attention_heads: 16,
  q_lora_rank: null,
  intermediate_size: 10944,
  moe_intermediate_size: 1408,
  n_routed_experts: 64,
  n_group: 1,
  topk_group: 1,
  topk_method: "greedy",
  routed_scaling_factor: 1,
};

const V3: ConfigJson = {
  ...V2,
  architectures: ["DeepseekV3ForCausalLM"],
  model_type: "deepseek_v3",
  hidden_size: 7168,
  num_hidden_layers: 61,
  num_nextn_predict_layers: 0,
  intermediate_size: 18432,
  moe_intermediate_size: 2048,
  n_routed_experts: 256,
  num_experts_per_tok: 8,
  n_shared_experts: 1,
  topk_group: 4,
  topk_method: "noaux_tc",
  scoring_func: "sigmoid",
  norm_topk_prob: true,
  routed_scaling_factor: 2.5,
  first_k_dense_replace: 3,
  rope_scaling: yarn(1),
  vocab_size: 129280,
  bos_token_id: 0,
  eos_token_id: 1,
};

const MOONLIGHT: ConfigJson = {
  ...V2_LITE,
  architectures: ["DeepseekV3ForCausalLM"],
  model_type: "deepseek_v3",
  intermediate_size: 11264,
  topk_method: "noaux_tc",
  scoring_func: "sigmoid",
  norm_topk_prob: true,
  routed_scaling_factor: 2.446,
  rope_theta: 50000,
  rope_scaling: null,
  rms_norm_eps: 1e-5,
  vocab_size: 163840,
  max_position_embeddings: 8192,
  bos_token_id: 163584,
  eos_token_id: 163585,
};

const SHAPES = {
  "v2-lite": V2_LITE,
  "v2": V2,
  "moonlight": MOONLIGHT,
  "v3": V3,
};

/** A name of {@link shapeConfig}. */
export type ShapeName = keyof typeof SHAPES;

/** All of them, for messages. */
export const SHAPE_NAMES = Object.keys(SHAPES) as ShapeName[];

/**
 * The `config.json` of a shape.
 *
 * @param layers how many instead of the published number
 * @throws RangeError for a name that is not known, or no whole number of layers
 */
export function shapeConfig(name: string, layers?: number): ConfigJson {
  if (!Object.hasOwn(SHAPES, name)) {
    throw new RangeError(
      `The shape is ${JSON.stringify(name)}, and must be one of ${
        SHAPE_NAMES.join(", ")
      }`,
    );
  }
  const shape = SHAPES[name as ShapeName];
  if (layers === undefined) return shape;
  if (!Number.isInteger(layers) || layers < 1 || layers > 1000) {
    throw new RangeError(
      `The number of layers is ${layers}, and must be an integer in [1, 1000]`,
    );
  }
  return { ...shape, num_hidden_layers: layers };
}
