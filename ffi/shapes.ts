import type { GroupScore, Scoring } from "./enums.ts";
import type { WeightDType } from "./weight.ts";

/** A weight of a model: `count` matrices `[rows, cols]`. */
export interface WeightRef {
  /** What the library calls it. */
  readonly id: number;
  /** Rows of each matrix: outputs. */
  readonly rows: number;
  /** Columns of each matrix: inputs. */
  readonly cols: number;
  /** Matrices: the experts of a layer, else 1. */
  readonly count: number;
  /** Element type on the device. */
  readonly dtype: WeightDType | "f64";
}

/** A symbolic tensor of a program: `cols` elements for each row. */
export interface ValueRef {
  /** Its place in {@link ProgramRecorder.values}. */
  readonly id: number;
  /** Elements for each row. */
  readonly cols: number;
}

/** The dimensions of multi-head latent attention, named as in config.json. */
export interface MlaShape {
  /** Heads; each has keys and values of its own. */
  num_attention_heads: number;
  /** Width of the part of a head's query and key that is not rotated. */
  qk_nope_head_dim: number;
  /** Width of the rotated part; its key is shared by all heads. */
  qk_rope_head_dim: number;
  /** Width of a head's values. */
  v_head_dim: number;
  /** Width of the latent that keys and values are made of. */
  kv_lora_rank: number;
}

/** How a router chooses: see `MOELA_OP_ROUTER`. */
export interface RouterShape {
  /** Experts to choose from. */
  n_routed_experts: number;
  /** Experts chosen for a row. */
  num_experts_per_tok: number;
  /** Contiguous groups of experts of one size. */
  n_group: number;
  /** Groups that stay in the choice. */
  topk_group: number;
  /** From logits to scores. */
  scoring: keyof typeof Scoring;
  /** How groups are compared. */
  groupScore: keyof typeof GroupScore;
  /** Divide the chosen weights by their sum. */
  normalise: boolean;
  /** Factor on the weights. */
  factor: number;
}
