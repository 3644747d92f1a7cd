/** The published configs of the family, and the same at a test's size. */

/** Members of the family whose configs differ. */
export type FamilyName =
  | "v2"
  | "v2-lite"
  | "v2.5"
  | "v3"
  | "moonlight"
  | "kimi-k2"
  | "glm-4.7-flash";

type Config = Record<string, unknown>;

const yarn = (factor: number, mscale: number, beta_fast = 32): Config => ({
  type: "yarn",
  factor,
  beta_fast,
  beta_slow: 1,
  mscale,
  mscale_all_dim: mscale,
  original_max_position_embeddings: 4096,
});

const SHARED: Config = {
  architectures: ["DeepseekV3ForCausalLM"],
  model_type: "deepseek_v3",
  kv_lora_rank: 512,
  qk_nope_head_dim: 128,
  qk_rope_head_dim: 64,
  v_head_dim: 128,
  n_group: 1,
  topk_group: 1,
  topk_method: "noaux_tc",
  scoring_func: "sigmoid",
  norm_topk_prob: true,
  moe_layer_freq: 1,
  hidden_act: "silu",
  attention_bias: false,
  tie_word_embeddings: false,
  bos_token_id: 0,
  eos_token_id: 1,
  torch_dtype: "bfloat16",
};

const V2: Config = {
  ...SHARED,
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
  first_k_dense_replace: 1,
  rope_theta: 10000,
  rope_scaling: yarn(40, 0.707),
  rms_norm_eps: 1e-6,
  vocab_size: 102400,
  max_position_embeddings: 163840,
  bos_token_id: 100000,
  eos_token_id: 100001,
};

const V2_LITE: Config = {
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

const V3: Config = {
  ...SHARED,
  hidden_size: 7168,
  num_hidden_layers: 61,
  num_nextn_predict_layers: 1,
  num_attention_heads: 128,
  q_lora_rank: 1536,
  intermediate_size: 18432,
  moe_intermediate_size: 2048,
  n_routed_experts: 256,
  num_experts_per_tok: 8,
  n_shared_experts: 1,
  n_group: 8,
  topk_group: 4,
  routed_scaling_factor: 2.5,
  first_k_dense_replace: 3,
  rope_theta: 10000,
  rope_scaling: yarn(40, 1),
  rms_norm_eps: 1e-6,
  vocab_size: 129280,
  max_position_embeddings: 163840,
  quantization_config: {
    activation_scheme: "dynamic",
    fmt: "e4m3",
    quant_method: "fp8",
    weight_block_size: [128, 128],
  },
};

const MOONLIGHT: Config = {
  ...SHARED,
  hidden_size: 2048,
  num_hidden_layers: 27,
  num_attention_heads: 16,
  q_lora_rank: null,
  intermediate_size: 11264,
  moe_intermediate_size: 1408,
  n_routed_experts: 64,
  num_experts_per_tok: 6,
  n_shared_experts: 2,
  routed_scaling_factor: 2.446,
  first_k_dense_replace: 1,
  rope_theta: 50000,
  rope_scaling: null,
  rms_norm_eps: 1e-5,
  vocab_size: 163840,
  max_position_embeddings: 8192,
};

const KIMI_K2: Config = {
  ...V3,
  model_type: "kimi_k2",
  num_nextn_predict_layers: 0,
  num_attention_heads: 64,
  n_routed_experts: 384,
  n_group: 1,
  topk_group: 1,
  routed_scaling_factor: 2.827,
  first_k_dense_replace: 1,
  rope_theta: 50000,
  rope_scaling: yarn(32, 1, 1),
  vocab_size: 163840,
  max_position_embeddings: 131072,
};

/** This file gives neither `scoring_func` nor `moe_layer_freq`. */
const GLM_FLASH: Config = {
  ...SHARED,
  architectures: ["Glm4MoeLiteForCausalLM"],
  model_type: "glm4_moe_lite",
  scoring_func: undefined,
  moe_layer_freq: undefined,
  num_nextn_predict_layers: 1,
  partial_rotary_factor: 1.0,
  hidden_size: 2048,
  num_hidden_layers: 47,
  num_attention_heads: 20,
  q_lora_rank: 768,
  qk_nope_head_dim: 192,
  v_head_dim: 256,
  intermediate_size: 10240,
  moe_intermediate_size: 1536,
  n_routed_experts: 64,
  num_experts_per_tok: 4,
  n_shared_experts: 1,
  routed_scaling_factor: 1.8,
  first_k_dense_replace: 1,
  rope_theta: 1000000,
  rope_scaling: null,
  rms_norm_eps: 1e-5,
  vocab_size: 154880,
  max_position_embeddings: 202752,
  eos_token_id: [1, 2],
};

const FAMILY: Record<FamilyName, Config> = {
  "v2": V2,
  "v2-lite": V2_LITE,
  "v2.5": { ...V2, rope_scaling: yarn(40, 1) },
  "v3": V3,
  "moonlight": MOONLIGHT,
  "kimi-k2": KIMI_K2,
  "glm-4.7-flash": GLM_FLASH,
};

/** All members, for loops. */
export const FAMILY_NAMES = Object.keys(FAMILY) as FamilyName[];

/** `config.json` of a published model, as it would be parsed. */
export function familyConfig(name: FamilyName): Config {
  return JSON.parse(JSON.stringify(FAMILY[name]));
}

/**
 * The same architecture small enough for a test: every switch and factor as
 * published, every width of a kind that is no multiple of 16.
 */
export function reducedConfig(name: FamilyName): Config {
  const config = familyConfig(name);
  const isGlm = name === "glm-4.7-flash";
  const scaling = config.rope_scaling as Config | null;
  return {
    ...config,
    vocab_size: 200,
    hidden_size: 56,
    num_hidden_layers: Number(config.first_k_dense_replace) + 2,
    num_attention_heads: isGlm ? 5 : 3,
    q_lora_rank: config.q_lora_rank === null ? null : 40,
    kv_lora_rank: 24,
    qk_nope_head_dim: isGlm ? 36 : 20,
    qk_rope_head_dim: 12,
    v_head_dim: isGlm ? 48 : 20,
    intermediate_size: 72,
    moe_intermediate_size: 24,
    n_routed_experts: name === "kimi-k2" ? 48 : 32,
    rope_scaling: scaling === null
      ? null
      : { ...scaling, original_max_position_embeddings: 64 },
    max_position_embeddings: 2048,
    bos_token_id: 0,
    eos_token_id: isGlm ? [1, 2] : 1,
    quantization_config: undefined,
  };
}
