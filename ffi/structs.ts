/** The structs of csrc/include/moela.h, where their meaning is told. */
import { Struct } from "./struct.ts";

/** `moela_device_options` */
export const DeviceOptions = new Struct("moela_device_options", {
  size: "u32",
  index: "i32",
  threads: "i32",
  kernels: "i32",
});

/** `moela_device_info` */
export const DeviceInfo = new Struct("moela_device_info", {
  size: "u32",
  kernels: "i32",
  available: "i32",
  threads: "i32",
  memory_total: "u64",
  memory_free: "u64",
  name: ["char", 96],
});

/** `moela_memory` */
export const Memory = new Struct("moela_memory", {
  size: "u32",
  reserved: "u32",
  weights_private: "u64",
  weights_mapped: "u64",
  pools: "u64",
  workspace: "u64",
});

/** `moela_weight_desc` */
export const WeightDesc = new Struct("moela_weight_desc", {
  size: "u32",
  stored: "i32",
  dtype: "i32",
  count: "i32",
  rows: "i64",
  cols: "i64",
  seed: "u64",
  mean: "f32",
  deviation: "f32",
});

/** `moela_weight_part` */
export const WeightPart = new Struct("moela_weight_part", {
  file: "i32",
  scale_file: "i32",
  offset: "u64",
  scale_offset: "u64",
});

/** `moela_pool_desc` */
export const PoolDesc = new Struct("moela_pool_desc", {
  size: "u32",
  dtype: "i32",
  layers: "i32",
  kv_lora_rank: "i32",
  qk_rope_head_dim: "i32",
  max_pages: "i32",
});

/** `moela_op` */
export const Op = new Struct("moela_op", {
  kind: "i32",
  rows: "i32",
  in: ["i32", 4],
  out: ["i32", 2],
  weight: ["i32", 2],
  n: ["i32", 8],
  f: ["f32", 2],
});

/** `moela_value` */
export const Value = new Struct("moela_value", {
  dtype: "i32",
  rows: "i32",
  cols: "i64",
  extra: "i64",
  keep: "i32",
  reserved: "i32",
});

/** `moela_program_desc` */
export const ProgramDesc = new Struct("moela_program_desc", {
  size: "u32",
  max_rows: "i32",
  max_logits: "i32",
  n_values: "i32",
  n_ops: "i32",
  reserved: "i32",
});

/** `moela_segment` */
export const Segment = new Struct("moela_segment", {
  row: "i32",
  rows: "i32",
  position: "i32",
  pool: "i32",
  page: "i32",
  n_pages: "i32",
});

/** `moela_sampling` */
export const Sampling = new Struct("moela_sampling", {
  temperature: "f32",
  top_p: "f32",
  min_p: "f32",
  typical_p: "f32",
  repetition_penalty: "f32",
  presence_penalty: "f32",
  frequency_penalty: "f32",
  top_k: "i32",
  seed: "u64",
  index: "i32",
  history: "i32",
  n_prompt: "i32",
  n_output: "i32",
  bias: "i32",
  n_bias: "i32",
  mask: "i32",
  stop: "i32",
  n_stop: "i32",
  min_index: "i32",
  top_logprobs: "i32",
  segment: "i32",
});

/** `moela_step` */
export const Step = new Struct("moela_step", {
  size: "u32",
  program: "i32",
  n_rows: "i32",
  n_absorbed: "i32",
  n_segments: "i32",
  n_pages: "i32",
  n_logits: "i32",
  n_sampling: "i32",
  n_aux: "i32",
  entry_words: "i32",
  steps: "i32",
  masks_follow: "i32",
});

/** Every struct, for the check against the library. */
export const STRUCTS = [
  DeviceOptions,
  DeviceInfo,
  Memory,
  WeightDesc,
  WeightPart,
  PoolDesc,
  Op,
  Value,
  ProgramDesc,
  Segment,
  Sampling,
  Step,
] as const;
