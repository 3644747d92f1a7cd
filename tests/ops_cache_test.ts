/** The rotary embedding and writing to the cache against their definitions in float64. */
import { assertEquals } from "@std/assert";
import { Kernels } from "../ffi/mod.ts";
import { dot, filledCache, LAYER, PAGE, small, width } from "./support/mla.ts";
import { fromBf16 } from "./support/numbers.ts";
import {
  assertClose,
  floatTypes,
  kernelSets,
  normals,
  stored,
} from "./support/ops.ts";

for (const set of kernelSets) {
  const open = () => new Kernels({ threads: 2, kernels: set });

  Deno.test(`rotary() rotates adjacent pairs by position times frequency (${set})`, async () => {
    using kernels = open();
    const heads = 3, dn = 24, dr = 16, factor = 1.5;
    const frequencies = Float64Array.from(
      { length: dr / 2 },
      (_, i) => 1e4 ** (-2 * i / dr),
    );
    const tensor = kernels.tensor(frequencies);
    for (const position of [0, 63, 163_800]) {
      const rows = 5;
      const x = normals(rows * heads * (dn + dr), 1);
      const expected = Array.from(x);
      for (let i = 0; i < x.length; i += 2) {
        const at = i % (dn + dr) - dn;
        if (at < 0) continue;
        const row = Math.floor(i / (dn + dr) / heads);
        const angle = (position + row) * frequencies[at / 2];
        const cos = factor * Math.cos(angle), sin = factor * Math.sin(angle);
        expected[i] = x[i] * cos - x[i + 1] * sin;
        expected[i + 1] = x[i] * sin + x[i + 1] * cos;
      }
      const y = await kernels.rotary(
        x,
        heads,
        dn + dr,
        position,
        tensor,
        factor,
      );
      assertClose(y, expected, 1e-6, `position ${position}`);
    }
  });

  for (const type of floatTypes) {
    Deno.test(`cache_write() stores the normed latent and the rotated key (${set}, ${type})`, async () => {
      using kernels = open();
      const s = small, w = width(s), r = s.kv_lora_rank, rows = 70;
      const position = 60, tokens = 200, epsilon = 1e-5;
      const { cache, entries } = filledCache(kernels, s, tokens, type, 3);
      const kvA = normals(rows * w, 4);
      const norm = stored(normals(r, 5), type);
      const frequencies = Float64Array.from(
        { length: s.qk_rope_head_dim / 2 },
        (_, i) => 1e4 ** (-2 * i / s.qk_rope_head_dim),
      );
      await kernels.cache_write(
        kvA,
        kernels.tensor(norm.data),
        kernels.tensor(frequencies),
        { cache, position, rows },
        epsilon,
        LAYER,
      );
      const expected = Array.from(entries);
      for (let row = 0; row < rows; row++) {
        const x = kvA.subarray(row * w, (row + 1) * w);
        const latent = x.subarray(0, r);
        const rms = Math.sqrt(dot(latent, latent) / r + epsilon);
        const to = (position + row) * w;
        latent.forEach((v, i) => expected[to + i] = v / rms * norm.values[i]);
        frequencies.forEach((frequency, i) => {
          const cos = Math.cos((position + row) * frequency);
          const sin = Math.sin((position + row) * frequency);
          const a = x[r + 2 * i], b = x[r + 2 * i + 1];
          expected[to + r + 2 * i] = a * cos - b * sin;
          expected[to + r + 2 * i + 1] = a * sin + b * cos;
        });
      }
      for (let token = 0; token < tokens; token++) {
        const bytes = kernels.model.readPage(
          cache.pool,
          cache.pages[Math.floor(token / PAGE)],
        );
        const page = type === "f32"
          ? new Float32Array(bytes.buffer)
          : Float32Array.from(new Uint16Array(bytes.buffer), fromBf16);
        const from = (PAGE + token % PAGE) * w;
        const written = token >= position && token < position + rows;
        for (let i = 0; i < w; i++) {
          const want = expected[token * w + i];
          // Half a unit in the last of bf16's eight bits, and f32's rounding before.
          const near = !written
            ? 0
            : Math.abs(want) * (type === "f32" ? 0 : 2 ** -8) + 2e-6;
          assertClose([page[from + i]], [want], near, `token ${token}, ${i}`);
        }
        // The other layer is as it was.
        assertEquals(page[token % PAGE * w], NaN);
      }
    });
  }
}
