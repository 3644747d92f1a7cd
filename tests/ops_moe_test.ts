/** The operations of a mixture-of-experts layer, each by itself against its definition. */
import { assert, assertEquals } from "@std/assert";
import { Kernels, type Tensor } from "../ffi/mod.ts";
import { Random } from "./support/numbers.ts";
import {
  assertSameBits,
  type Floats,
  type FloatType,
  floatTypes,
  kernelSets,
  normals,
  stored,
} from "./support/ops.ts";
import { assertProduct, product, SUM_TOLERANCE } from "./support/products.ts";
import { taken } from "./support/rounding.ts";

interface Layer {
  name: string;
  rows: number;
  experts: number;
  /** Experts a row. */
  k: number;
  d: number;
  intermediate: number;
  /** The experts among which each row chooses. */
  among: readonly number[];
}

const range = (n: number) => Array.from({ length: n }, (_, i) => i);

const layers: readonly Layer[] = [
  { rows: 1, experts: 1, k: 1, d: 5, intermediate: 3, among: [0] },
  { rows: 1, experts: 8, k: 3, d: 20, intermediate: 17, among: range(8) },
  { rows: 7, experts: 5, k: 2, d: 33, intermediate: 9, among: [0, 1, 2, 4] },
  { rows: 3, experts: 6, k: 2, d: 1, intermediate: 1, among: [4, 5] },
  // More rows than a block holds, and experts with one row or none.
  { rows: 131, experts: 4, k: 1, d: 24, intermediate: 70, among: [2] },
  { rows: 90, experts: 12, k: 3, d: 45, intermediate: 31, among: range(11) },
  // Wider than a tile.
  { rows: 20, experts: 3, k: 2, d: 290, intermediate: 300, among: range(3) },
].map((layer) => ({
  ...layer,
  name: `${layer.rows} rows, ${layer.k} of ${layer.experts} experts, ` +
    `${layer.d} x ${layer.intermediate}`,
}));

/** `k` different experts for each row, `[rows, k]`. */
function choose({ rows, k, among }: Layer): Int32Array<ArrayBuffer> {
  const random = new Random(rows + k);
  return Int32Array.from(
    range(rows).flatMap(() => {
      const left = [...among];
      return range(k).map(() => left.splice(random.integer(left.length), 1)[0]);
    }),
  );
}

/** `[count, rows, cols]` on the device in `type`, and the values of each. */
function weight(
  kernels: Kernels,
  [count, rows, cols]: readonly [number, number, number],
  type: FloatType,
  seed: number,
): { tensor: Tensor; parts: Floats[] } {
  const size = rows * cols;
  const { data, values } = stored(normals(count * size, seed), type);
  return {
    tensor: kernels.tensor(data, rows, cols),
    parts: range(count).map((i) => values.slice(i * size, (i + 1) * size)),
  };
}

/** Row `i` of `[rows, width]`. */
const row = (x: Floats, i: number, width: number) =>
  x.slice(i * width, (i + 1) * width);

/** `silu(x G^T) * (x U^T)` for one row, with what f32 may be off by. */
function gated(x: Floats, gate: Floats, up: Floats) {
  const gates = product(x, gate, x.length);
  const ups = product(x, up, x.length);
  return Array.from(gates.sums, (g, i) => {
    const silu = g / (1 + Math.exp(-g));
    const value = silu * ups.sums[i];
    // The slope of silu is at most 1.1.
    const off = SUM_TOLERANCE *
      (1.1 * gates.magnitudes[i] * Math.abs(ups.sums[i]) +
        Math.abs(silu) * ups.magnitudes[i] + Math.abs(value));
    return { value, off };
  });
}

function assertGated(
  actual: Floats,
  expected: ReturnType<typeof gated>,
  what: string,
) {
  assertEquals(actual.length, expected.length, what);
  expected.forEach(({ value, off }, i) =>
    assert(
      Math.abs(actual[i] - value) <= off,
      `${what}: element ${i} is ${actual[i]}, expected ${value}`,
    )
  );
}

/** The plan of `chosen`, and what gate_up and expert_down make of `x` and `hidden` with it. */
async function runExperts(
  kernels: Kernels,
  layer: Layer,
  chosen: Int32Array<ArrayBuffer>,
  x: Floats,
  hidden: Floats,
  [gate, up, down]: readonly Tensor[],
) {
  const { experts, k, d, intermediate } = layer;
  const { outputs, ids } = await kernels.run((p) => {
    const ids = p.input(k, "i32");
    const rows = p.input(d);
    const slots = p.input(k * intermediate);
    const plan = p.moePlan(ids, experts);
    return {
      inputs: [[ids, chosen], [rows, x], [slots, hidden]],
      outputs: [
        p.gateUp(rows, gate, up, plan),
        p.expertDown(slots, down, plan),
      ],
      ids: [plan],
    };
  }, { rows: chosen.length / k });
  return { gateUp: outputs[0], expertDown: outputs[1], plan: ids[0] };
}

function expertWeights(kernels: Kernels, layer: Layer, type: FloatType) {
  const { experts, d, intermediate } = layer;
  return [
    weight(kernels, [experts, intermediate, d], type, 1),
    weight(kernels, [experts, intermediate, d], type, 2),
    weight(kernels, [experts, d, intermediate], type, 3),
  ];
}

for (const kernels of kernelSets) {
  Deno.test(`moe_plan() sorts the slots by expert (${kernels})`, async () => {
    using device = new Kernels({ threads: 1, kernels });
    for (const layer of layers) {
      const { rows, experts, k } = layer;
      const chosen = choose(layer);
      const { ids } = await device.run((p) => {
        const input = p.input(k, "i32");
        return { inputs: [[input, chosen]], ids: [p.moePlan(input, experts)] };
      }, { rows });
      const slots = range(rows * k);
      const offsets = range(experts + 1).map((e) =>
        slots.filter((slot) => chosen[slot] < e).length
      );
      const sorted = range(experts).flatMap((e) =>
        slots.filter((slot) => chosen[slot] === e)
      );
      assertEquals(Array.from(ids[0]), [...offsets, ...sorted], layer.name);
    }
  });

  Deno.test(`moe_plan() leaves out experts that do not exist (${kernels})`, async () => {
    using device = new Kernels({ threads: 1, kernels });
    const { ids } = await device.run((p) => {
      const input = p.input(2, "i32");
      const chosen = Int32Array.from([3, 1, -1, 0, 2, 1 << 30]);
      return { inputs: [[input, chosen]], ids: [p.moePlan(input, 3)] };
    }, { rows: 3 });
    assertEquals(Array.from(ids[0].subarray(0, 7)), [0, 1, 2, 3, 3, 1, 4]);
  });

  for (const type of floatTypes) {
    Deno.test(`gate_up() and expert_down() use each slot's expert (${kernels}, ${type})`, async () => {
      using device = new Kernels({ threads: 2, kernels });
      for (const layer of layers) {
        const { rows, k, d, intermediate, name } = layer;
        const [gate, up, down] = expertWeights(device, layer, type);
        const chosen = choose(layer);
        const x = normals(rows * d, 4);
        const hidden = normals(rows * k * intermediate, 5);
        const y = await runExperts(
          device,
          layer,
          chosen,
          x,
          hidden,
          [gate.tensor, up.tensor, down.tensor],
        );
        for (let slot = 0; slot < rows * k; slot++) {
          const e = chosen[slot];
          const from = row(taken(x, kernels, type), Math.floor(slot / k), d);
          assertGated(
            row(y.gateUp, slot, intermediate),
            gated(from, gate.parts[e], up.parts[e]),
            `gate_up, ${name}, slot ${slot}`,
          );
          assertProduct(
            row(y.expertDown, slot, d),
            product(
              row(taken(hidden, kernels, type), slot, intermediate),
              down.parts[e],
              intermediate,
            ),
            `expert_down, ${name}, slot ${slot}`,
          );
        }
      }
    });

    Deno.test(`gate_up() sends all rows through one part without a plan (${kernels}, ${type})`, async () => {
      using device = new Kernels({ threads: 2, kernels });
      for (const { rows, d, intermediate, name } of layers) {
        const gate = weight(device, [1, intermediate, d], type, 1);
        const up = weight(device, [1, intermediate, d], type, 2);
        const x = normals(rows * d, 3);
        const { outputs } = await device.run((p) => {
          const input = p.input(d);
          return {
            inputs: [[input, x]],
            outputs: [p.gateUp(input, gate.tensor, up.tensor)],
          };
        }, { rows });
        for (let i = 0; i < rows; i++) {
          assertGated(
            row(outputs[0], i, intermediate),
            gated(
              row(taken(x, kernels, type), i, d),
              gate.parts[0],
              up.parts[0],
            ),
            `${name}, row ${i}`,
          );
        }
      }
    });

    Deno.test(`gate_up() and expert_down() give a row the same bits alone (${kernels}, ${type})`, async () => {
      using one = new Kernels({ threads: 1, kernels });
      for (const layer of layers) {
        const { rows, k, d, intermediate, name } = layer;
        const chosen = choose(layer);
        const x = normals(rows * d, 4);
        const hidden = normals(rows * k * intermediate, 5);
        const tensors = expertWeights(one, layer, type).map((w) => w.tensor);
        const alone: Awaited<ReturnType<typeof runExperts>>[] = [];
        for (const i of range(rows)) {
          alone.push(
            await runExperts(
              one,
              layer,
              chosen.slice(i * k, (i + 1) * k),
              row(x, i, d),
              row(hidden, i, k * intermediate),
              tensors,
            ),
          );
        }
        for (const threads of [1, 2, 3]) {
          using device = new Kernels({ threads, kernels });
          const y = await runExperts(
            device,
            layer,
            chosen,
            x,
            hidden,
            expertWeights(device, layer, type).map((w) => w.tensor),
          );
          alone.forEach(({ gateUp, expertDown }, i) => {
            const what = `${name}, ${threads} threads, row ${i}`;
            assertSameBits(row(y.gateUp, i, k * intermediate), gateUp, what);
            assertSameBits(row(y.expertDown, i, k * d), expertDown, what);
          });
        }
      }
    });
  }

  Deno.test(`gate_up() keeps silu finite far from zero (${kernels})`, async () => {
    using device = new Kernels({ threads: 1, kernels });
    const x = Float32Array.of(-1e4, -200, -89, -20, 0, 20, 89, 200, 1e4);
    const ones = device.tensor(Float32Array.of(1), 1, 1);
    const { outputs } = await device.run((p) => {
      const input = p.input(1);
      return { inputs: [[input, x]], outputs: [p.gateUp(input, ones, ones)] };
    }, { rows: x.length });
    x.forEach((v, i) => {
      const expected = v * v / (1 + Math.exp(-v));
      assert(
        Math.abs(outputs[0][i] - expected) <= 1e-6 * expected + 1e-30,
        `silu(${v}) * ${v} is ${outputs[0][i]}, expected ${expected}`,
      );
    });
  });

  Deno.test(`combine() adds ranks in order, the shared expert, then the residual (${kernels})`, async () => {
    using device = new Kernels({ threads: 2, kernels });
    for (
      const [rows, k, d] of [[1, 1, 1], [1, 6, 300], [13, 8, 77], [70, 2, 513]]
    ) {
      const experts = normals(rows * k * d, 1);
      const weights = normals(rows * k, 2);
      const shared = normals(rows * d, 3);
      const residual = normals(rows * d, 4);
      for (const withShared of [true, false]) {
        const { outputs } = await device.run((p) => {
          const slots = p.input(k * d), factors = p.input(k);
          const other = p.input(d), stream = p.input(d);
          return {
            inputs: [
              [slots, experts],
              [factors, weights],
              [other, shared],
              [stream, residual],
            ],
            outputs: [
              p.combine(slots, factors, withShared ? other : undefined, stream),
            ],
          };
        }, { rows });
        // Every step rounded to f32: the order is part of the definition.
        const f = Math.fround;
        const expected = residual.map((r, at) => {
          const i = Math.floor(at / d), j = at % d;
          const sum = range(k).map((rank) =>
            f(weights[i * k + rank] * experts[(i * k + rank) * d + j])
          ).reduce((a, b) => f(a + b));
          return f(r + (withShared ? f(sum + shared[at]) : sum));
        });
        assertSameBits(outputs[0], expected, `${rows} rows, ${k} x ${d}`);
      }
    }
  });
}
