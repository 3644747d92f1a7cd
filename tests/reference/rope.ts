/** Rotary embedding with YaRN, from the definition: for comparison with src. */

/** `rope_scaling` of a YaRN config. */
export interface YarnConfig {
  factor: number;
  beta_fast?: number;
  beta_slow?: number;
  mscale?: number;
  mscale_all_dim?: number;
  original_max_position_embeddings: number;
}

/** 1 + 0.1 m ln s, for s > 1. */
export function getMscale(s: number, m: number): number {
  return s <= 1 ? 1 : 0.1 * m * Math.log(s) + 1;
}

/** f_i of the d/2 pairs, blended between f_i and f_i / factor. */
export function inverseFrequencies(
  d: number,
  base: number,
  yarn: YarnConfig | null,
): number[] {
  const result: number[] = [];
  for (let i = 0; i < d / 2; i++) {
    const f = Math.pow(base, -2 * i / d);
    if (yarn === null) {
      result.push(f);
      continue;
    }
    const original = yarn.original_max_position_embeddings;
    const corr = (n: number) =>
      d * Math.log(original / (2 * Math.PI * n)) / (2 * Math.log(base));
    const low = Math.max(Math.floor(corr(yarn.beta_fast ?? 32)), 0);
    let high = Math.min(Math.ceil(corr(yarn.beta_slow ?? 1)), d - 1);
    if (low === high) high += 0.001;
    const ramp = Math.max(0, Math.min(1, (i - low) / (high - low)));
    result.push(f / yarn.factor * ramp + f * (1 - ramp));
  }
  return result;
}

/** Turns the adjacent pairs (2i, 2i + 1) of `x` in place. */
export function rotate(
  x: Float64Array,
  position: number,
  frequencies: readonly number[],
  multiplier: number,
): void {
  frequencies.forEach((frequency, i) => {
    const cos = Math.cos(position * frequency) * multiplier;
    const sin = Math.sin(position * frequency) * multiplier;
    const a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = a * cos - b * sin;
    x[2 * i + 1] = a * sin + b * cos;
  });
}
