/**
 * Mixed programs, of which a device may do several operations at once and store values in other types:
 * the same bits as one by one, and where experts' outputs are rounded, no more than that.
 */
import { assertEquals } from "@std/assert";
import { Kernels, type ProgramRecorder, type ValueRef } from "../ffi/mod.ts";
import {
  countRows,
  kvB,
  LAYER,
  queryWidth,
  real,
  sequences,
  softmaxScale,
} from "./support/mla.ts";
import { fromBf16, toBf16 } from "./support/numbers.ts";
import {
  assertSameBits,
  type Floats,
  kernelSets,
  normals,
  stored,
} from "./support/ops.ts";

const D = 64, EXPERTS = 5, CHOSEN = 3, WIDTH = 72;

/** Pairs of elements from `offset` on in each head, rotated: each product and sum rounded. */
function rotated(
  x: Floats,
  table: Floats,
  [heads, headDim, offset, dr]: readonly [number, number, number, number],
): Floats {
  const y = x.slice(), { fround } = Math;
  for (let row = 0; row < x.length / (heads * headDim); row++) {
    for (let head = 0; head < heads; head++) {
      for (let i = 0; i < dr / 2; i++) {
        const at = (row * heads + head) * headDim + offset + 2 * i;
        const cosine = table[row * dr + i], sine = table[row * dr + dr / 2 + i];
        const even = x[at], odd = x[at + 1];
        y[at] = fround(fround(even * cosine) - fround(odd * sine));
        y[at + 1] = fround(fround(even * sine) + fround(odd * cosine));
      }
    }
  }
  return y;
}

for (const kernels of kernelSets) {
  for (const absorbed of [0, 1]) {
    Deno.test(`a mixed program has the bits of its operations, ${absorbed} absorbed rows (${kernels})`, async () => {
      using device = new Kernels({ threads: 2, kernels });
      const heads = real.num_attention_heads, dr = real.qk_rope_head_dim;
      const weight = (rows: number, cols: number, seed: number, count = 1) =>
        device.tensor(
          stored(normals(count * rows * cols, seed, 0.1), "bf16").data,
          rows,
          cols,
        );
      const first = sequences(device, real, "bf16", [[70, 1]]);
      const second = sequences(device, real, "bf16", [[0, 130], [64, 10]]);
      const all = absorbed ? [...first, ...second] : second;
      const rows = countRows(all);
      const w = {
        q: weight(heads * queryWidth(real), D, 1),
        kvA: weight(real.kv_lora_rank + dr, D, 2),
        norm: device.tensor(normals(real.kv_lora_rank, 3)),
        kvB: kvB(device, real, "bf16").tensor,
        frequencies: device.tensor(
          Float64Array.from({ length: dr / 2 }, (_, i) => 100 ** (-i / dr)),
        ),
        gate: weight(WIDTH, D, 4, EXPERTS),
        up: weight(WIDTH, D, 5, EXPERTS),
        down: weight(D, WIDTH, 6, EXPERTS),
        sharedGate: weight(2 * WIDTH, D, 12),
        sharedUp: weight(2 * WIDTH, D, 13),
        sharedDown: weight(D, 2 * WIDTH, 14),
        postNorm: device.tensor(normals(D, 10)),
        router: device.tensor(normals(EXPERTS * D, 11), EXPERTS, D),
      };
      const x = normals(rows * D, 7);
      const factors = normals(rows * CHOSEN, 9).map(Math.abs);
      const chosen = Int32Array.from(
        { length: rows * CHOSEN },
        (_, slot) => (Math.floor(slot / CHOSEN) * 7 + slot) % EXPERTS,
      );
      const layer = (p: ProgramRecorder) => {
        const input = p.input(D);
        const ids = p.input(CHOSEN, "i32"), by = p.input(CHOSEN);
        const table = p.ropeTable(w.frequencies, 1);
        const q = p.linear(input, w.q), latent = p.linear(input, w.kvA);
        p.rotary(q, table, heads, real.qk_nope_head_dim);
        p.cacheWrite(latent, table, w.norm, LAYER, 1e-6);
        const out = p.value(heads * real.v_head_dim);
        const scale = softmaxScale(real);
        p.mlaAbsorbed(q, w.kvB, LAYER, real, scale, out);
        p.mlaPrefill(q, w.kvB, LAYER, real, scale, out);
        const plan = p.moePlan(ids, EXPERTS);
        // Taken in f32 by one product, and rounded by another.
        const y = p.rmsNorm(input, w.postNorm, 1e-6);
        const logits = p.linear(y, w.router);
        const hidden = p.gateUp(y, w.gate, w.up, plan);
        const routed = p.expertDown(hidden, w.down, plan);
        const shared = p.linear(
          p.gateUp(y, w.sharedGate, w.sharedUp),
          w.sharedDown,
        );
        const sum = p.combine(routed, by, shared, input);
        const inputs: [ValueRef, Floats | Int32Array<ArrayBuffer>][] = [
          [input, x],
          [ids, chosen],
          [by, factors],
        ];
        return { inputs, table, q, out, y, logits, routed, shared, sum };
      };
      const options = { rows, absorbed, sequences: all };
      const kept = await device.run((p) => {
        const { inputs, table, q, out, y, logits, routed, shared } = layer(p);
        const outputs = [table, q, out, y, logits, routed, shared];
        return { inputs, outputs };
      }, options);
      const [table, q, out, y, logits, routed, shared] = kept.outputs;
      const free = await device.run((p) => {
        const { inputs, out, logits, sum } = layer(p);
        return { inputs, outputs: [out, logits, sum] };
      }, { ...options, keep: "outputs" });

      const alone = await device.run((p) => {
        const input = p.input(D), normed = p.input(D);
        const ids = p.input(CHOSEN, "i32");
        const plan = p.moePlan(ids, EXPERTS);
        const hidden = p.gateUp(normed, w.gate, w.up, plan);
        return {
          inputs: [[input, x], [normed, y], [ids, chosen]],
          outputs: [
            p.linear(input, w.q),
            p.linear(normed, w.router),
            p.expertDown(hidden, w.down, plan),
            p.linear(
              p.gateUp(normed, w.sharedGate, w.sharedUp),
              w.sharedDown,
            ),
          ],
        };
      }, options);
      const shape = [
        heads,
        queryWidth(real),
        real.qk_nope_head_dim,
        dr,
      ] as const;
      assertSameBits(q, rotated(alone.outputs[0], table, shape), "queries");
      assertSameBits(free.outputs[0], out, "attention");
      assertSameBits(logits, alone.outputs[1], "logits");
      assertSameBits(free.outputs[1], logits, "logits, not kept");
      assertSameBits(routed, alone.outputs[2], "experts");
      assertSameBits(shared, alone.outputs[3], "shared experts");

      const { fround } = Math;
      const expected = Float32Array.from({ length: rows * D }, (_, i) => {
        const row = Math.floor(i / D);
        const rounds = kernels === "sm90" && row >= absorbed;
        let sum = 0;
        for (let rank = 0; rank < CHOSEN; rank++) {
          const slot = row * CHOSEN + rank;
          const y = routed[slot * D + i % D];
          const part = fround(
            factors[slot] * (rounds ? fromBf16(toBf16(y)) : y),
          );
          sum = rank === 0 ? part : fround(sum + part);
        }
        return fround(fround(sum + shared[i]) + x[i]);
      });
      assertSameBits(free.outputs[2], expected, "experts, summed");
    });
  }

  Deno.test(`wide products rotate as well (${kernels})`, async () => {
    // So much that CUDA gives two blocks of a cluster a tile.
    const rows = 1700, heads = 8, one = { ...real, num_attention_heads: 1 };
    using device = new Kernels({ threads: 2, kernels });
    const n = heads * queryWidth(real), dr = real.qk_rope_head_dim;
    const weight = device.tensor(stored(normals(n * D, 1), "bf16").data, n, D);
    const frequencies = device.tensor(
      Float64Array.from({ length: dr / 2 }, (_, i) => 100 ** (-i / dr)),
    );
    const { tensor } = kvB(device, one, "bf16");
    const all = sequences(device, one, "bf16", [[0, rows]]);
    const x = normals(rows * D, 2), query = normals(rows * queryWidth(one), 3);
    const run = (rotates: boolean) =>
      device.run((p) => {
        const input = p.input(D), other = p.input(query.length / rows);
        const table = p.ropeTable(frequencies, 1);
        const q = p.linear(input, weight);
        if (rotates) p.rotary(q, table, heads, real.qk_nope_head_dim);
        const out = p.value(one.v_head_dim);
        p.mlaPrefill(other, tensor, LAYER, one, softmaxScale(one), out);
        return { inputs: [[input, x], [other, query]], outputs: [table, q] };
      }, { rows, absorbed: 0, sequences: all });
    const [table, plain] = (await run(false)).outputs;
    const shape = [heads, queryWidth(real), real.qk_nope_head_dim, dr] as const;
    const [, turned] = (await run(true)).outputs;
    assertEquals(turned.length, plain.length);
    assertSameBits(turned, rotated(plain, table, shape), "queries");
  });
}
