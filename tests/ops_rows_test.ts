/**
 * Products of many rows whose input lies between two operations, where a device may store it as
 * products take it: the same bits as from an input that is kept, and as for a row alone.
 */
import { Kernels, type Tensor } from "../ffi/mod.ts";
import { Random } from "./support/numbers.ts";
import {
  assertSameBits,
  type Floats,
  kernelSets,
  normals,
  stored,
} from "./support/ops.ts";

const range = (n: number) => Array.from({ length: n }, (_, i) => i);

/** `[count, rows, cols]` in bf16 on the device. */
function weight(
  kernels: Kernels,
  [count, rows, cols]: readonly [number, number, number],
  seed: number,
): Tensor {
  const { data } = stored(normals(count * rows * cols, seed), "bf16");
  return kernels.tensor(data, rows, cols);
}

/** `[rows, k]` different experts a row; the first ones are chosen more often. */
function choose(rows: number, k: number, experts: number) {
  const random = new Random(rows + k);
  return Int32Array.from(
    range(rows).flatMap(() => {
      const left = range(experts);
      return range(k).map(() => {
        const among = random.integer(2)
          ? left.length
          : Math.min(2, left.length);
        return left.splice(random.integer(among), 1)[0];
      });
    }),
  );
}

for (const kernels of kernelSets) {
  Deno.test(`linear() of normed rows has the same bits for any number of rows (${kernels})`, async () => {
    using device = new Kernels({ threads: 2, kernels });
    for (
      const [n, k, most] of [
        [40, 136, 70],
        [200, 264, 33],
        [8, 8, 9],
        [136, 648, 130],
        [2056, 16, 70],
        [3072, 16, 256],
      ]
    ) {
      const norm = weight(device, [1, 1, k], 1);
      const w = weight(device, [1, n, k], 2);
      const x = normals(most * k, 3), residual = normals(most * n, 4);
      const run = (rows: number, keep: boolean) =>
        device.run((p) => {
          const input = p.input(k), added = p.input(n);
          const normed = p.rmsNorm(input, norm, 1e-6);
          const y = p.linear(normed, w), z = p.linear(normed, w, added);
          return {
            inputs: [[input, x.slice(0, rows * k)], [
              added,
              residual.slice(0, rows * n),
            ]],
            outputs: keep ? [y, z, normed] : [y, z],
          };
        }, { rows });
      const { outputs: [y, z] } = await run(most, true);
      for (const rows of [most, most - 1, 17, 9, 1]) {
        if (rows > most) continue;
        const { outputs } = await run(rows, false);
        const what = `${rows} of ${most} rows, ${n} x ${k}`;
        assertSameBits(outputs[0], y.slice(0, rows * n), what);
        assertSameBits(
          outputs[1],
          z.slice(0, rows * n),
          `${what}, with residual`,
        );
      }
    }
  });

  Deno.test(`gate_up() and expert_down() of normed rows have the same bits for any number of rows (${kernels})`, async () => {
    using device = new Kernels({ threads: 2, kernels });
    for (
      const { experts, k, d, intermediate, most } of [
        { experts: 3, k: 2, d: 136, intermediate: 72, most: 40 },
        { experts: 5, k: 2, d: 16, intermediate: 136, most: 130 },
        { experts: 70, k: 6, d: 264, intermediate: 8, most: 12 },
        { experts: 2, k: 1, d: 16, intermediate: 2816, most: 130 },
      ]
    ) {
      const norm = weight(device, [1, 1, d], 1);
      const gate = weight(device, [experts, intermediate, d], 2);
      const up = weight(device, [experts, intermediate, d], 3);
      const down = weight(device, [experts, d, intermediate], 4);
      const dense = {
        gate: weight(device, [1, intermediate, d], 6),
        up: weight(device, [1, intermediate, d], 7),
        down: weight(device, [1, d, intermediate], 8),
      };
      const x = normals(most * d, 5), chosen = choose(most, k, experts);
      // Up and gate in either order in memory; with a plan and without.
      const run = (rows: number, keep: boolean) =>
        device.run((p) => {
          const input = p.input(d), ids = p.input(k, "i32");
          const normed = p.rmsNorm(input, norm, 1e-6);
          const plan = p.moePlan(ids, experts);
          const hidden = p.gateUp(normed, gate, up, plan);
          const swapped = p.gateUp(normed, up, gate, plan);
          const shared = p.gateUp(normed, dense.gate, dense.up);
          const outputs = [
            p.expertDown(hidden, down, plan),
            p.expertDown(swapped, down, plan),
            p.linear(shared, dense.down),
          ];
          if (keep) outputs.push(hidden, swapped, shared, normed);
          return {
            inputs: [
              [input, x.slice(0, rows * d)],
              [ids, chosen.slice(0, rows * k)],
            ],
            outputs,
          };
        }, { rows });
      const { outputs: all } = await run(most, true);
      for (const rows of [most, most - 3, 9, 1]) {
        const { outputs } = await run(rows, false);
        outputs.forEach((y: Floats, i) =>
          assertSameBits(
            y,
            all[i].slice(0, y.length),
            `${rows} of ${most} rows, ${k} of ${experts} experts, output ${i}`,
          )
        );
      }
    }
  });
}
