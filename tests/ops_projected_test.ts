/**
 * Products of rows on the up-projected path, which on Hopper are others than those of absorbed rows:
 * against definitions in float64, and a row's bits alone and among many.
 */
import { assert } from "@std/assert";
import { Kernels, type Tensor } from "../ffi/mod.ts";
import {
  assertSameBits,
  type Floats,
  kernelSets,
  normals,
  stored,
} from "./support/ops.ts";
import { product } from "./support/products.ts";
import { taken } from "./support/rounding.ts";

const EXPERTS = 3, CHOSEN = 2;

interface Case {
  rows: number;
  n: number;
  k: number;
}
const cases: readonly Case[] = [
  { rows: 150, n: 72, k: 40 },
  // So much that CUDA gives two blocks of a cluster a tile.
  { rows: 1300, n: 2048, k: 64 },
];
/** Some rows by themselves: [begin, end). */
const pieces = [[130, 131], [60, 77], [25, 150]] as const;

/** An instruction of 16 terms rounds their sum once, and what it is added to. */
const tolerance = (k: number) => (k / 16 + 1) * 2 ** -22;

for (const kernels of kernelSets) {
  Deno.test(`linear() of projected rows has the same bits alone (${kernels})`, async () => {
    using device = new Kernels({ threads: 2, kernels });
    for (const { rows, n, k } of cases) {
      const { data, values } = stored(normals(n * k, 1), "bf16");
      const w = device.tensor(data, n, k);
      const x = normals(rows * k, 2), residual = normals(rows * n, 3);
      const run = async (begin: number, end: number) => {
        const { outputs } = await device.run((p) => {
          const input = p.input(k), stream = p.input(n);
          return {
            inputs: [
              [input, x.slice(begin * k, end * k)],
              [stream, residual.slice(begin * n, end * n)],
            ],
            outputs: [p.linear(input, w), p.linear(input, w, stream)],
          };
        }, { rows: end - begin, absorbed: 0 });
        return outputs;
      };
      const all = await run(0, rows);
      for (const row of [0, 30, 149, rows - 1]) {
        const at = (y: Floats) => y.slice(row * n, (row + 1) * n);
        const from = taken(x.slice(row * k, (row + 1) * k), kernels, "bf16");
        const { sums, magnitudes } = product(from, values, k);
        at(all[0]).forEach((y, i) => {
          const error = Math.abs(y - sums[i]);
          assert(
            error <= tolerance(k) * magnitudes[i],
            `${row}, ${i}: ${error}`,
          );
        });
        const added = at(all[0]).map((y, i) => y + residual[row * n + i]);
        assertSameBits(at(all[1]), added, `row ${row} with its residual`);
      }
      for (const [begin, end] of pieces) {
        const alone = await run(begin, end);
        alone.forEach((y, i) =>
          assertSameBits(
            y,
            all[i].slice(begin * n, end * n),
            `rows ${begin} to ${end} of ${rows}`,
          )
        );
      }
    }
  });

  Deno.test(`gate_up() and expert_down() of projected rows have the same bits alone (${kernels})`, async () => {
    using device = new Kernels({ threads: 2, kernels });
    const d = 64, width = 72;
    const experts = (rows: number, cols: number, seed: number): Tensor =>
      device.tensor(
        stored(normals(EXPERTS * rows * cols, seed, 0.1), "bf16").data,
        rows,
        cols,
      );
    const gate = experts(width, d, 1), up = experts(width, d, 2);
    const down = experts(d, width, 3);
    for (const { rows } of cases) {
      const x = normals(rows * d, 4);
      const chosen = Int32Array.from(
        { length: rows * CHOSEN },
        (_, slot) => (Math.floor(slot / CHOSEN) * 7 + slot) % EXPERTS,
      );
      const run = async (begin: number, end: number) => {
        const { outputs } = await device.run((p) => {
          const ids = p.input(CHOSEN, "i32"), input = p.input(d);
          const plan = p.moePlan(ids, EXPERTS);
          const hidden = p.gateUp(input, gate, up, plan);
          return {
            inputs: [
              [ids, chosen.slice(begin * CHOSEN, end * CHOSEN)],
              [input, x.slice(begin * d, end * d)],
            ],
            outputs: [hidden, p.expertDown(hidden, down, plan)],
          };
        }, { rows: end - begin, absorbed: 0 });
        return outputs;
      };
      const all = await run(0, rows);
      for (const [begin, end] of pieces) {
        const alone = await run(begin, end);
        alone.forEach((y, i) => {
          const size = all[i].length / rows;
          assertSameBits(
            y,
            all[i].slice(begin * size, end * size),
            `rows ${begin} to ${end} of ${rows}`,
          );
        });
      }
    }
  });
}
