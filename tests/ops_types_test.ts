/** Products with weights of fp8, int8 and int4, against their definitions in float64. */

import { Kernels, type KernelSetName } from "../ffi/mod.ts";
import { assertEquals } from "@std/assert";
import {
  attention,
  countRows,
  LAYER,
  odd,
  queryWidth,
  real,
  sequences,
  small,
  softmaxScale,
} from "./support/mla.ts";
import { relativeError } from "./support/numbers.ts";
import {
  assertClose,
  assertSameBits,
  cpuKernelSets,
  type Floats,
  kernelSets,
  normals,
} from "./support/ops.ts";
import { assertProduct, product } from "./support/products.ts";
import {
  attentionTolerance,
  prefillTolerance,
  taken,
} from "./support/rounding.ts";
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
const input = (
  x: Floats,
  k: number,
  type: ScaledType,
  kernels: KernelSetName,
) => type === "fp8" ? taken(x, kernels, type) : quantizedRows(x, k);

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
          const expected = product(input(x, k, type, kernels), values[0], k);
          assertProduct(y, expected, `${rows} x ${n} x ${k}`);
        }
      }
    });
  }
}

const CPU_FLOAT_TOLERANCE = 1e-5;

for (const type of ["int8", "int4"] as const) {
  Deno.test(`linear() has the same bits on every set of the CPU (${type})`, async () => {
    for (const [n, k] of shapes) {
      const w = normals(n * k, n + k);
      for (const rows of [1, 3, 4, 17, 97]) {
        const x = normals(rows * k, rows);
        const residual = normals(rows * n, 1);
        const results: Floats[] = [];
        for (const kernels of cpuKernelSets) {
          using device = new Kernels({ device: "cpu", threads: 2, kernels });
          const { tensor } = await typedWeight(device, w, n, k, type);
          results.push(await device.linear(x, tensor, residual));
        }
        for (const [i, result] of results.entries()) {
          const what = `${cpuKernelSets[i]}, ${rows} x ${n} x ${k}`;
          assertSameBits(result, results[0], what);
        }
      }
    }
  });
}

for (const kernels of kernelSets) {
  for (const type of scaledTypes) {
    Deno.test(`linear() gives a row the same bits alone (${kernels}, ${type})`, async () => {
      using device = new Kernels({ threads: 3, kernels });
      for (const [n, k] of shapes) {
        const w = normals(n * k, 1);
        const { tensor } = await typedWeight(device, w, n, k, type);
        const rows = 101;
        const x = normals(rows * k, 2);
        const together = await device.linear(x, tensor);
        for (const [begin, end] of [[0, 1], [1, 3], [5, 9], [100, 101]]) {
          assertSameBits(
            await device.linear(x.slice(begin * k, end * k), tensor),
            together.slice(begin * n, end * n),
            `${n} x ${k}, rows ${begin} to ${end}`,
          );
        }
      }
    });

    Deno.test(`linear() takes rows of zeros, of tiny numbers and of NaN (${kernels}, ${type})`, async () => {
      using device = new Kernels({ threads: 1, kernels });
      const n = 9, k = 130;
      const w = normals(n * k, 1);
      const { tensor } = await typedWeight(device, w, n, k, type);
      const x = new Float32Array(4 * k);
      x.fill(1e-38, k, 2 * k);
      x[3 * k - 1] = NaN;
      x[3 * k] = 1;
      const y = await device.linear(x, tensor);
      assertClose(y.subarray(0, 2 * n), new Float32Array(2 * n), 1e-30, "zero");
      assertEquals(y.subarray(2 * n, 3 * n).every(Number.isNaN), true);
      assertEquals(y.subarray(3 * n).some(Number.isNaN), false);
    });

    Deno.test(`gate_up() and expert_down() use each slot's expert (${kernels}, ${type})`, async () => {
      using device = new Kernels({ threads: 2, kernels });
      const experts = 5, k = 2, d = 200, intermediate = 150;
      const size = d * intermediate;
      const all = [1, 2, 3].map((seed) => normals(experts * size, seed, 0.1));
      const shape = (part: number): [number, number] =>
        part === 2 ? [d, intermediate] : [intermediate, d];
      const grouped = await Promise.all(
        all.map((w, part) => typedWeight(device, w, ...shape(part), type)),
      );
      const [gate, up, down] = grouped.map(({ tensor }) => tensor);
      for (const rows of [1, 3, 70]) {
        const x = normals(rows * d, rows);
        const slots = normals(rows * k * intermediate, rows);
        // Expert 3 has no row, and many rows meet at expert 0.
        const chosen = Int32Array.from(
          { length: rows * k },
          (_, slot) => slot % k === 0 ? 0 : [1, 2, 4][slot % 3],
        );
        const { outputs } = await device.run((p) => {
          const ids = p.input(k, "i32");
          const input = p.input(d), hidden = p.input(k * intermediate);
          const plan = p.moePlan(ids, experts);
          return {
            inputs: [[ids, chosen], [input, x], [hidden, slots]],
            outputs: [
              p.gateUp(input, gate, up, plan),
              p.expertDown(hidden, down, plan),
            ],
          };
        }, { rows });
        for (const [slot, expert] of chosen.entries()) {
          if (slot > 10 && slot < chosen.length - 4) continue;
          const row = Math.floor(slot / k);
          const parts = grouped.map(({ values }) => values[expert]);
          const rowOf = (from: Floats, i: number, width: number) =>
            from.slice(i * width, (i + 1) * width);
          const of = (from: Floats, w: Floats) => {
            const taken = input(from, from.length, type, kernels);
            return product(taken, w, from.length);
          };
          assertProduct(
            rowOf(outputs[1], slot, d),
            of(rowOf(slots, slot, intermediate), parts[2]),
            `${rows} rows, slot ${slot}, down`,
          );
          const gates = of(rowOf(x, row, d), parts[0]);
          const ups = of(rowOf(x, row, d), parts[1]);
          const expected = Array.from(
            gates.sums,
            (g, i) => g / (1 + Math.exp(-g)) * ups.sums[i],
          );
          const error = relativeError(
            rowOf(outputs[0], slot, intermediate),
            expected,
          );
          assertEquals(error < CPU_FLOAT_TOLERANCE, true, `gate_up ${error}`);
        }
      }
    });
  }
}

for (const kernels of kernelSets) {
  for (const type of ["int8", "fp8"] as const) {
    Deno.test(`mla_decode() and mla_prefill() read kv_b_proj (${kernels}, ${type})`, async () => {
      using device = new Kernels({ threads: 2, kernels });
      for (const s of [small, odd, real]) {
        const rows = s.num_attention_heads *
          (s.qk_nope_head_dim + s.v_head_dim);
        const r = s.kv_lora_rank;
        const { tensor, values } = await typedWeight(
          device,
          normals(rows * r, 7, r ** -0.5),
          rows,
          r,
          type,
        );
        const all = sequences(device, s, "f32", [[0, 1], [3, 2], [60, 9]]);
        const n = countRows(all);
        const q = normals(n * s.num_attention_heads * queryWidth(s), 14);
        const expected = attention(s, q, values[0], all);
        for (const path of ["mla_decode", "mla_prefill"] as const) {
          const actual = await device[path](
            q,
            tensor,
            s,
            softmaxScale(s),
            all,
            LAYER,
          );
          const error = relativeError(actual, expected);
          const most = attentionTolerance(kernels, type, CPU_FLOAT_TOLERANCE);
          assertEquals(error < most, true, `${path}: ${error}`);
        }
        // Beside a cache of bf16 AMX multiplies in bf16.
        const halves = sequences(device, s, "bf16", [[0, 1], [3, 2], [60, 9]]);
        const actual = await device.mla_prefill(
          q,
          tensor,
          s,
          softmaxScale(s),
          halves,
          LAYER,
        );
        const error = relativeError(actual, attention(s, q, values[0], halves));
        const most = prefillTolerance(kernels, "bf16", CPU_FLOAT_TOLERANCE);
        assertEquals(error < most, true, `cache of bf16: ${error}`);
      }
    });
  }
}
