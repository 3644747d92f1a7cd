/** Matrix products in float64, and how far a sum in f32 may be from them. */
import { assert, assertEquals } from "@std/assert";

/** Sums and, for each, the sum of the magnitudes that went into it. */
export interface Product {
  sums: Float64Array<ArrayBuffer>;
  magnitudes: Float64Array<ArrayBuffer>;
}

/** `x W^T` for rows `[k]` of `x` and rows `[k]` of `w`. */
export function product(
  x: ArrayLike<number>,
  w: ArrayLike<number>,
  k: number,
): Product {
  const rows = x.length / k, cols = w.length / k;
  const sums = new Float64Array(rows * cols);
  const magnitudes = new Float64Array(rows * cols);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < cols; j++) {
      let sum = 0, magnitude = 0;
      for (let l = 0; l < k; l++) {
        const term = x[i * k + l] * w[j * k + l];
        sum += term;
        magnitude += Math.abs(term);
      }
      sums[i * cols + j] = sum;
      magnitudes[i * cols + j] = magnitude;
    }
  }
  return { sums, magnitudes };
}

/** An f32 sum of some hundred terms is off by a few roundings of its magnitude. */
export const SUM_TOLERANCE = 5e-7;

/** Every sum within {@link SUM_TOLERANCE} of its magnitude. */
export function assertProduct(
  actual: ArrayLike<number>,
  { sums, magnitudes }: Product,
  what: string,
) {
  assertEquals(actual.length, sums.length, what);
  for (let i = 0; i < sums.length; i++) {
    assert(
      Math.abs(actual[i] - sums[i]) <= SUM_TOLERANCE * magnitudes[i],
      `${what}: element ${i} is ${actual[i]}, expected ${sums[i]}`,
    );
  }
}
