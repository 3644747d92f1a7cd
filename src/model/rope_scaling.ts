/**
 * `rope_scaling` of `config.json`: none or YaRN.
 *
 * @module
 */

import { Fields } from "./fields.ts";

/** Bound of token positions, far above every release. */
export const MAX_POSITIONS = 2 ** 30;

const RATIO = { min: 0, max: 1, fallback: 1 };

/** YaRN, as `rope_scaling` gives it. */
export interface YarnScaling {
  /** The only kind of the family. */
  readonly type: "yarn";
  /** Ratio of the extended to the original context. */
  readonly factor: number;
  /** Rotations over the original context above which a frequency is kept. */
  readonly beta_fast: number;
  /** Rotations below which a frequency is divided by `factor`. */
  readonly beta_slow: number;
  /** Enters the multiplier of cos and sin, as the dividend. */
  readonly mscale: number;
  /** The divisor there; its square also enters the softmax scale. */
  readonly mscale_all_dim: number;
  /** Context length, in tokens, before the extension. */
  readonly original_max_position_embeddings: number;
}

/**
 * Reads `rope_theta` and `rope_scaling`, or `rope_parameters`, which holds both
 * in newer files.
 *
 * @param fields The whole config.
 * @param file The file's path, for messages.
 */
export function parseRope(
  fields: Fields,
  file: string,
): { rope_theta: number; rope_scaling: YarnScaling | null } {
  if (fields.number("partial_rotary_factor", RATIO) !== 1) {
    fields.refuse("partial_rotary_factor", "1");
  }
  const theta = { min: 1.5, max: 1e12 };
  const name = fields.raw("rope_scaling") === undefined &&
      fields.raw("rope_parameters") !== undefined
    ? "rope_parameters"
    : "rope_scaling";
  if (fields.raw(name) === undefined) {
    return {
      rope_theta: fields.number("rope_theta", theta),
      rope_scaling: null,
    };
  }
  const scaling = new Fields(fields.raw(name), file, name);
  const rope_theta = fields.has("rope_theta") || name === "rope_scaling"
    ? fields.number("rope_theta", theta)
    : scaling.number("rope_theta", theta);
  const type = scaling.choice(
    scaling.has("rope_type") ? "rope_type" : "type",
    ["yarn", "default"],
  );
  if (scaling.number("partial_rotary_factor", RATIO) !== 1) {
    scaling.refuse("partial_rotary_factor", "1");
  }
  if (type === "default") return { rope_theta, rope_scaling: null };
  if (scaling.raw("attention_factor") !== undefined) {
    scaling.refuse("attention_factor", "absent: mscale has its place");
  }
  if (!scaling.boolean("truncate", true)) scaling.refuse("truncate", "true");
  const beta_slow = scaling.number("beta_slow", {
    min: 1e-3,
    max: 1e6,
    fallback: 1,
  });
  const rope_scaling: YarnScaling = {
    type,
    factor: scaling.number("factor", { min: 1, max: 1e6 }),
    beta_fast: scaling.number("beta_fast", {
      min: beta_slow,
      max: 1e6,
      fallback: 32,
    }),
    beta_slow,
    mscale: scaling.number("mscale", { min: 0, max: 100, fallback: 1 }),
    mscale_all_dim: scaling.number("mscale_all_dim", {
      min: 0,
      max: 100,
      fallback: 0,
    }),
    original_max_position_embeddings: scaling.integer(
      "original_max_position_embeddings",
      { min: 1, max: MAX_POSITIONS },
    ),
  };
  return { rope_theta, rope_scaling };
}
