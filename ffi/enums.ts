/** The constants of csrc/include/moela.h. */

/** What this code was written for; the library must say the same. */
export const ABI_VERSION = 4;

/** `MOELA_PAGE_TOKENS`: tokens in a page of the cache. */
export const PAGE_TOKENS = 64;

/** `moela_status` */
export const Status = {
  OK: 0,
  ARGUMENT: 1,
  MEMORY: 2,
  IO: 3,
  DEVICE: 4,
  CANCELLED: 5,
  INTERNAL: 6,
} as const;

/** `moela_dtype` */
export const DType = {
  f32: 0,
  bf16: 1,
  f16: 2,
  fp8: 3,
  int8: 4,
  int4: 5,
  int6: 6,
  i32: 7,
  f64: 8,
} as const;

/** `moela_kernels` */
export const KernelSet = {
  auto: 0,
  reference: 1,
  avx2: 2,
  avx512: 3,
  amx: 4,
  generic: 5,
  sm90: 6,
  "sm90-persistent": 7,
} as const;

/** A name of {@link KernelSet}. */
export type KernelSetName = keyof typeof KernelSet;

/** `moela_rows`: which rows of a step an operation or a value has. */
export const Rows = { all: 0, absorbed: 1, projected: 2, logits: 3 } as const;

/** A name of {@link Rows}. */
export type RowsName = keyof typeof Rows;

/** `moela_op_kind` */
export const OpKind = {
  embed: 0,
  rms_norm: 1,
  linear: 2,
  rope_table: 3,
  rotary: 4,
  cache_write: 5,
  mla_absorb: 6,
  mla_decode: 7,
  mla_expand: 8,
  mla_prefill: 9,
  router: 10,
  moe_plan: 11,
  gate_up: 12,
  expert_down: 13,
  combine: 14,
  gather: 15,
  logits_out: 16,
  logprob: 17,
  sample: 18,
} as const;

/** `moela_scoring` */
export const Scoring = { softmax: 0, sigmoid: 1 } as const;

/** `moela_group_score` */
export const GroupScore = { none: 0, max: 1, top2_sum: 2 } as const;

/** Words of `control`, as `MOELA_CONTROL_*`. */
export const ControlWord = {
  cancel: 0,
  count: 1,
  done: 2,
  steps: 3,
  yield: 4,
  masks: 5,
  words: 8,
} as const;
