/** The operations between tokens, rows and logits, each by itself against its definition. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { Kernels, type Tensor } from "../ffi/mod.ts";
import { NativeError } from "../mod.ts";
import {
  assertClose,
  assertSameBits,
  type Floats,
  type FloatType,
  floatTypes,
  kernelSets,
  normals,
  stored,
} from "./support/ops.ts";
import { assertProduct, product } from "./support/products.ts";
import { taken } from "./support/rounding.ts";

/** `[rows, cols]` normal numbers on the device in `type`, and what it computes with. */
function weight(
  kernels: Kernels,
  rows: number,
  cols: number,
  type: FloatType,
  seed: number,
): { tensor: Tensor; values: Floats } {
  const { data, values } = stored(normals(rows * cols, seed), type);
  return { tensor: kernels.tensor(data, rows, cols), values };
}

/** `[out, in]` of a linear layer. */
const shapes: readonly (readonly [number, number])[] = [
  [1, 1],
  [3, 7],
  [8, 8],
  [5, 17],
  [33, 100],
  [70, 3],
  [48, 64],
  [131, 515],
  [600, 41],
];

for (const kernels of kernelSets) {
  for (const type of floatTypes) {
    Deno.test(`embed() reads the rows of its tokens (${kernels}, ${type})`, async () => {
      using device = new Kernels({ threads: 2, kernels });
      for (const d of [1, 7, 16, 45]) {
        const { tensor, values } = weight(device, 11, d, type, d);
        const tokens = [10, 0, 3, 3, 7];
        const { outputs } = await device.run((p) => ({
          outputs: [p.embed(tensor)],
        }), { rows: tokens.length, tokens });
        assertEquals(
          Array.from(outputs[0]),
          tokens.flatMap((t) => Array.from(values.slice(t * d, (t + 1) * d))),
        );
      }
    });

    Deno.test(`rms_norm() divides by the root mean square (${kernels}, ${type})`, async () => {
      using device = new Kernels({ threads: 2, kernels });
      for (
        const [d, stride] of [[1, 1], [7, 7], [48, 48], [100, 117], [515, 600]]
      ) {
        const rows = 5, epsilon = 1e-3;
        const x = normals(rows * stride, d, 2);
        // A row of zeros: only epsilon is left.
        x.fill(0, stride, 2 * stride);
        const { tensor, values } = weight(device, 1, d, type, 3);
        const { outputs } = await device.run((p) => {
          const input = p.input(stride);
          return {
            inputs: [[input, x]],
            outputs: [p.rmsNorm(input, tensor, epsilon)],
          };
        }, { rows });
        for (let row = 0; row < rows; row++) {
          const from = x.subarray(row * stride, row * stride + d);
          const mean = from.reduce((sum, v) => sum + v * v, 0) / d;
          const factor = 1 / Math.sqrt(mean + epsilon);
          for (let i = 0; i < d; i++) {
            const expected = from[i] * factor * values[i];
            assertClose(
              [outputs[0][row * d + i]],
              [expected],
              1e-6 * Math.abs(expected),
              `d ${d}, row ${row}, ${i}`,
            );
          }
        }
      }
    });

    Deno.test(`linear() multiplies by the transpose (${kernels}, ${type})`, async () => {
      using device = new Kernels({ threads: 2, kernels });
      for (const [n, k] of shapes) {
        const { tensor, values } = weight(device, n, k, type, n + k);
        for (const rows of [1, 2, 3, 4, 7, 33, 100]) {
          const x = normals(rows * k, rows);
          const y = await device.linear(x, tensor);
          const expected = product(taken(x, kernels, type), values, k);
          assertProduct(y, expected, `${rows} x ${n} x ${k}`);
        }
      }
    });

    Deno.test(`linear() adds the residual after the sum (${kernels}, ${type})`, async () => {
      using device = new Kernels({ threads: 2, kernels });
      for (const [n, k] of shapes) {
        const { tensor } = weight(device, n, k, type, n + k);
        for (const rows of [1, 9]) {
          const x = normals(rows * k, rows);
          const residual = normals(rows * n, 5);
          const y = await device.linear(x, tensor);
          const expected = y.map((sum, i) => residual[i] + sum);
          assertSameBits(
            await device.linear(x, tensor, residual),
            expected,
            `${rows} x ${n} x ${k}`,
          );
          await assertRejects(
            () =>
              device.run((p) => {
                const input = p.input(k), stream = p.input(n);
                p.linear(input, tensor, stream);
                p.ops[0].out = [stream.id, -1];
                return {};
              }, { rows }),
            NativeError,
            "writes to a value that it reads",
          );
        }
      }
    });

    Deno.test(`linear() and rms_norm() give a row the same bits alone (${kernels}, ${type})`, async () => {
      const rows = 101;
      using one = new Kernels({ threads: 1, kernels });
      for (const [n, k] of shapes) {
        const x = normals(rows * k, k);
        const alone: Floats[][] = [];
        for (const threads of [1, 2, 3]) {
          using device = new Kernels({ threads, kernels });
          const w = weight(device, n, k, type, 1).tensor;
          const norm = weight(device, 1, k, type, 2).tensor;
          const together = [
            await device.linear(x, w),
            await device.rms_norm(x, norm, 1e-6),
          ];
          if (alone.length === 0) {
            const w1 = weight(one, n, k, type, 1).tensor;
            const norm1 = weight(one, 1, k, type, 2).tensor;
            for (let row = 0; row < rows; row++) {
              const from = x.slice(row * k, (row + 1) * k);
              alone.push([
                await one.linear(from, w1),
                await one.rms_norm(from, norm1, 1e-6),
              ]);
            }
          }
          together.forEach((all, op) => {
            const width = all.length / rows;
            for (let row = 0; row < rows; row++) {
              assertSameBits(
                all.slice(row * width, (row + 1) * width),
                alone[row][op],
                `${threads} threads, ${n} x ${k}, row ${row}`,
              );
            }
          });
          // Some rows of the batch, and a batch of another size.
          for (const [begin, end] of [[0, 2], [1, 4], [5, 9], [60, 101]]) {
            assertSameBits(
              await device.linear(x.slice(begin * k, end * k), w),
              together[0].slice(begin * n, end * n),
              `rows ${begin} to ${end}`,
            );
          }
        }
      }
    });

    Deno.test(`gather() and logits_out() pass on the rows that ask (${kernels}, ${type})`, async () => {
      using device = new Kernels({ threads: 2, kernels });
      const rows = 9, d = 21, vocab = 37;
      const x = normals(rows * d, 1);
      const { tensor } = weight(device, vocab, d, type, 2);
      const all = await device.linear(x, tensor);
      for (
        const logitRows of [[0], [8], [1, 4, 5, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8]]
      ) {
        for (const maxLogits of [1, 3, 9]) {
          const logits = new Float32Array(logitRows.length * vocab);
          await device.run((p) => {
            const input = p.input(d);
            p.outputs(p.linear(p.gather(input), tensor, undefined, "logits"));
            return { inputs: [[input, x]] };
          }, { rows, logitRows, maxLogits, step: { logits } });
          logitRows.forEach((row, i) =>
            assertSameBits(
              logits.slice(i * vocab, (i + 1) * vocab),
              all.slice(row * vocab, (row + 1) * vocab),
              `row ${row}, ${maxLogits} at once`,
            )
          );
        }
      }
    });
  }

  Deno.test(`linear() of many rows of f32, such as the router's, gives each the same bits alone (${kernels})`, async () => {
    using device = new Kernels({ threads: 2, kernels });
    // More and fewer rows than tiles have, one and several times 1,024 columns, whole and not.
    for (
      const [rows, n, k] of [[70, 70, 2048], [64, 9, 1100], [1537, 9, 1100], [
        1540,
        3,
        5120,
      ], [1600, 130, 2048]]
    ) {
      const x = normals(rows * k, k + n);
      const { tensor, values } = weight(device, n, k, "f32", 1);
      const together = await device.linear(x, tensor);
      const some = [0, 1, 8, 31, 32, 63, rows - 1];
      for (const row of some) {
        const from = x.slice(row * k, (row + 1) * k);
        const y = together.slice(row * n, (row + 1) * n);
        const what = `${n} x ${k}, row ${row} of ${rows}`;
        assertSameBits(y, await device.linear(from, tensor), what);
        assertProduct(y, product(from, values, k), what);
      }
    }
  });

  Deno.test(`linear() passes on what is not finite (${kernels})`, async () => {
    using device = new Kernels({ threads: 1, kernels });
    for (const k of [1, 8, 13]) {
      const w = device.tensor(new Float32Array(3 * k).fill(1), 3, k);
      const x = new Float32Array(3 * k).fill(1);
      x[k - 1] = Infinity;
      x[2 * k - 1] = NaN;
      const y = await device.linear(x, w);
      assertEquals(Array.from(y.subarray(0, 3)), [
        Infinity,
        Infinity,
        Infinity,
      ]);
      assert(y.subarray(3, 6).every(Number.isNaN));
      assertEquals(Array.from(y.subarray(6)), [k, k, k]);
    }
  });
}
