/** Products with weights of fp8, int8 and int4, against their definitions in float64. */

import { Kernels } from "../ffi/mod.ts";
import {

  type Floats,
  kernelSets,
  normals,
} from "./support/ops.ts";
import { assertProduct, product } from "./support/products.ts";
import {
  quantizedRows,
  type ScaledType,
  scaledTypes,
  typedWeight,
} from "./support/typed_weights.ts";

/** `[out, in]`: groups and vectors that are full, cut short, and alone. */
const shapes: readonly (readonly [number, number])[] = [
  [1, 1],
  [3, 7],
  [9, 64],
  [17, 128],
  [5, 100],
  [33, 130],
  [130, 200],
  [24, 515],
  [41, 1408],
];

/** What a product's input is taken as. */
const taken = (x: Floats, k: number, type: ScaledType) =>
  type === "fp8" ? x : quantizedRows(x, k);

for (const type of scaledTypes) {
  for (const kernels of kernelSets) {
    Deno.test(`linear() multiplies by the transpose (${kernels}, ${type})`, async () => {
      using device = new Kernels({ threads: 2, kernels });
      for (const [n, k] of shapes) {
        const { tensor, values } = await typedWeight(
          device,
          normals(n * k, n + k),
          n,
          k,
          type,
        );
        for (const rows of [1, 2, 3, 4, 5, 8, 33, 100]) {
          const x = normals(rows * k, rows);
          const y = await device.linear(x, tensor);
          const expected = product(taken(x, k, type), values[0], k);
          assertProduct(y, expected, `${rows} x ${n} x ${k}`);
        }
      }
    });
  }
}
