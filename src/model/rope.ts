/**
 * The numbers of rotary position embedding with YaRN, computed once in float64.
 * Source: the original modeling_deepseek.py; YaRN, arXiv 2309.00071;
 * DeepSeek-V2, arXiv 2405.04434, section 3.1.4.
 *
 * @module
 */

import type { ModelConfig, YarnScaling } from "./config.ts";

/** What rotation and softmax need to know of a config. */
export interface RopeNumbers {
  /**
   * `[qk_rope_head_dim / 2]`, radians a position: pair i, the adjacent elements
   * 2i and 2i + 1, turns by `position * inverseFrequencies[i]`.
   */
  readonly inverseFrequencies: Float64Array;
  /** Multiplies every cos and sin; 1 in every release of the family. */
  readonly cosSinMultiplier: number;
  /** Multiplies q·k before the softmax, over the nope and the rope part. */
  readonly softmaxScale: number;
}

/** YaRN's attention temperature: 1 + 0.1 m ln(s), and 1 without extension. */
function yarnMscale(factor: number, mscale: number): number {
  return factor <= 1 ? 1 : 0.1 * mscale * Math.log(factor) + 1;
}

/** The (real) pair index that makes `rotations` turns over the old context. */
function correctionIndex(
  rotations: number,
  dim: number,
  base: number,
  context: number,
): number {
  return dim * Math.log(context / (2 * Math.PI * rotations)) /
    (2 * Math.log(base));
}

function yarnFrequencies(
  plain: Float64Array,
  base: number,
  yarn: YarnScaling,
): Float64Array {
  const dim = plain.length * 2;
  const context = yarn.original_max_position_embeddings;
  const low = Math.max(
    Math.floor(correctionIndex(yarn.beta_fast, dim, base, context)),
    0,
  );
  let high = Math.min(
    Math.ceil(correctionIndex(yarn.beta_slow, dim, base, context)),
    dim - 1,
  );
  if (high === low) high += 0.001; // the ramp divides by the difference
  return plain.map((frequency, i) => {
    const ramp = Math.min(Math.max((i - low) / (high - low), 0), 1);
    return frequency / yarn.factor * ramp + frequency * (1 - ramp);
  });
}

/**
 * Frequencies, multiplier of cos and sin, and softmax scale of a config.
 * `mscale` acts on cos and sin only; `mscale_all_dim` divides there, and its
 * square enters the softmax scale unless it is 0.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { parseConfig } from "./config.ts";
 * import { ropeNumbers } from "./rope.ts";
 *
 * const path = "models/nano/config.json";
 * const config = parseConfig(JSON.parse(await Deno.readTextFile(path)), path);
 * const { inverseFrequencies } = ropeNumbers(config);
 * assertEquals(inverseFrequencies.length, config.qk_rope_head_dim / 2);
 * ```
 */
export function ropeNumbers(config: ModelConfig): RopeNumbers {
  const { qk_rope_head_dim: dim, rope_theta: base, rope_scaling: yarn } =
    config;
  const plain = Float64Array.from(
    { length: dim / 2 },
    (_, i) => base ** (-2 * i / dim),
  );
  const scale = (config.qk_nope_head_dim + dim) ** -0.5;
  if (yarn === null) {
    return {
      inverseFrequencies: plain,
      cosSinMultiplier: 1,
      softmaxScale: scale,
    };
  }
  const all = yarnMscale(yarn.factor, yarn.mscale_all_dim);
  return {
    inverseFrequencies: yarnFrequencies(plain, base, yarn),
    cosSinMultiplier: yarnMscale(yarn.factor, yarn.mscale) / all,
    // get_mscale(s, 0) is 1, so an absent mscale_all_dim needs no branch.
    softmaxScale: scale * all * all,
  };
}
