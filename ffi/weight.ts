/** Types that weights run in: the formats are written beside `moela_weight_desc`. */
export type WeightDType = "f32" | "bf16" | "fp8" | "int8" | "int4";

/** Where one matrix of a weight is. */
export type NativeWeightPart =
  & { file: number; offset: number }
  & { scaleFile?: number; scaleOffset?: number };

/** A weight of `parts.length` matrices `[rows, cols]`. */
export interface NativeWeight {
  /** Type in the file; of a generated weight "f32" or "bf16". */
  stored: WeightDType | "f16";
  /** Type wanted. */
  dtype: WeightDType;
  /** Rows of each matrix: outputs. */
  rows: number;
  /** Columns of each matrix: inputs. */
  cols: number;
  /** Places in files, or keys of generated tensors. */
  parts: readonly NativeWeightPart[] | readonly bigint[];
  /** Of generated weights: see `moela_generate`. */
  seed?: bigint;
  /** Mean of a generated weight. */
  mean?: number;
  /** Standard deviation of a generated weight. */
  deviation?: number;
}
