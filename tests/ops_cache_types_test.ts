/** Caches of fp8, int8 and int6: writing and attending, against their definitions in float64. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { Kernels, type MlaShape } from "../ffi/mod.ts";
import {
  attention,
  countRows,
  kvB,
  latentAttention,
  LAYER,
  odd,
  PAGE,
  queryWidth,
  real,
  small,
  softmaxScale,
  width,
} from "./support/mla.ts";
import {
  codeOf,
  decodeEntry,
  encodeEntry,
  largest,
  rowBytes,
  type ScaledCacheType,
  scaledCacheTypes,
  scaleOf,
  shortAt,
  tokenBytes,
  typedSequences,
} from "./support/cache_types.ts";
import { Random } from "./support/numbers.ts";
import {
  assertClose,
  assertSameBits,
  type Floats,
  kernelSets,
  normals,
} from "./support/ops.ts";
import { attentionTolerance, prefillTolerance } from "./support/rounding.ts";

// As in ops_mla_test.ts: the definition attends to what was decoded.
const TOLERANCE = 5e-6;

/** int6 has no odd widths. */
const shapesOf = (type: ScaledCacheType) =>
  type === "int6" ? [small, real] : [small, odd, real];

/** Inputs of a row whose entries reach from the smallest scales to beyond the largest. */
function unevenRows(rows: number, w: number): Floats {
  const x = normals(rows * w, 4);
  for (let row = 0; row < rows; row++) {
    const size = 2 ** (row % 50 - 30);
    for (let i = 0; i < w; i++) x[row * w + i] *= size;
  }
  x.fill(0, w, 2 * w);
  x.fill(-0, 2 * w, 3 * w);
  x.fill(NaN, 3 * w, 4 * w);
  x.fill(Infinity, 4 * w, 5 * w);
  x.fill(-3e38, 5 * w, 6 * w);
  x[7 * w - 1] = NaN;
  x[8 * w - 1] = Infinity;
  x[9 * w - 2] = -3e38;
  return x;
}

/** The entries that cache_write() makes of `x` at `position`, in a type: a page's bytes each. */
async function written(
  kernels: Kernels,
  s: MlaShape,
  dtype: ScaledCacheType | "f32",
  x: Floats,
  position: number,
  deviation: number,
) {
  const rows = x.length / width(s);
  const cache = kernels.cache(s, position + rows, { dtype, layers: 2 });
  const frequencies = Float64Array.from(
    { length: s.qk_rope_head_dim / 2 },
    (_, i) => 1e4 ** (-2 * i / s.qk_rope_head_dim),
  );
  await kernels.cache_write(
    x,
    kernels.tensor(normals(s.kv_lora_rank, 5, deviation)),
    kernels.tensor(frequencies),
    { cache, position, rows },
    1e-6,
    LAYER,
  );
  return Array.from(
    cache.pages,
    (id) => kernels.model.readPage(cache.pool, id),
  );
}

for (const set of kernelSets) {
  const open = (threads = 2) => new Kernels({ threads, kernels: set });

  for (const type of scaledCacheTypes) {
    Deno.test(`cache_write() stores the smallest scales that hold, and rounds (${set}, ${type})`, async () => {
      using kernels = open();
      for (const s of shapesOf(type)) {
        const w = width(s), r = s.kv_lora_rank, rows = 130, position = 60;
        const x = unevenRows(rows, w);
        for (const deviation of [1, 1e-8, 1e30]) {
          const exact = (await written(
            kernels,
            s,
            "f32",
            x,
            position,
            deviation,
          )).map((page) => new Float32Array(page.buffer));
          const pages = await written(
            kernels,
            s,
            type,
            x,
            position,
            deviation,
          );
          for (let row = 0; row < rows; row++) {
            const slot = (position + row) % PAGE;
            const page = Math.floor((position + row) / PAGE);
            const from = (LAYER * PAGE + slot) * w;
            const entry = exact[page].slice(from, from + w);
            const found = tokenBytes(pages[page], type, w, LAYER, slot);
            const expected = encodeEntry(type, r, entry);
            const what = `rank ${r}, norm ${deviation}, row ${row}`;
            assertEquals([...found.codes], expected.codes, what);
            assertEquals(found.row, expected.row, what);
            // The definition's own claim: within half a step of what was written.
            const back = decodeEntry(type, r, w, found.row, found.codes);
            back.forEach((value, i) => {
              const isKey = i >= r, most = largest(type, isKey);
              const scale = scaleOf(found.codes[isKey ? 1 : 0]);
              const fits = Math.abs(entry[i]) <= 240 * most;
              const step = type === "fp8" && !isKey
                ? Math.max(Math.abs(entry[i]) * 2 ** -3, scale * 2 ** -9)
                : type === "int6" && !isKey && i >= shortAt(r, w)
                ? 2 * scale
                : scale;
              assert(Number.isFinite(value), what);
              assert(
                !fits || Math.abs(value - entry[i]) <= 0.5001 * step ||
                  codeOf(Math.abs(entry[i]), most) === 1,
                `${what}: ${entry[i]} reads as ${value}`,
              );
            });
          }
          // The layer below and the tokens before are as they were.
          const before = pages[0].subarray(0, PAGE * (rowBytes(type, w) + 2));
          assert(before.every((byte) => byte === 0), "another layer");
          for (let slot = 0; slot < position; slot++) {
            const { row, codes } = tokenBytes(pages[0], type, w, LAYER, slot);
            assert(
              [...row, ...codes].every((byte) => byte === 0),
              `token ${slot}`,
            );
          }
        }
      }
    });

    Deno.test(`mlaDecode() reads every code and every byte exactly (${set}, ${type})`, async () => {
      using kernels = open();
      const random = new Random(3);
      for (const s of type === "int6" ? [small] : [small, odd]) {
        const w = width(s), r = s.kv_lora_rank, n = 256;
        const pool = kernels.cache(s, n * PAGE, { dtype: type, layers: 2 });
        // Attention to one token gives its latent: one page, and one row, for each code.
        const expected = Array.from(pool.pages, (id) => {
          const bytes = Uint8Array.from(
            { length: 2 * PAGE * (rowBytes(type, w) + 2) },
            () => random.integer(256),
          );
          // E4M3's NaN are never written.
          const page = type === "fp8"
            ? bytes.map((byte) => (byte & 127) === 127 ? 126 : byte)
            : bytes;
          const { row, codes } = tokenBytes(page, type, w, LAYER, 0);
          codes[0] = id;
          kernels.model.writePage(pool.pool, id, page);
          return decodeEntry(type, r, w, row, codes).subarray(0, r);
        });
        const heads = s.num_attention_heads;
        const { outputs } = await kernels.run((program) => {
          const q = program.input(heads * w);
          return {
            inputs: [[q, new Float32Array(n * heads * w)]],
            outputs: [program.mlaDecode(q, LAYER, s)],
          };
        }, {
          rows: n,
          sequences: Array.from(pool.pages, (id) => ({
            cache: { ...pool, pages: Int32Array.of(id) },
            position: 0,
            rows: 1,
          })),
        });
        for (let i = 0; i < n * heads; i++) {
          assertClose(
            outputs[0].subarray(i * r, (i + 1) * r),
            expected[Math.floor(i / heads)],
            0,
            `code ${Math.floor(i / heads)}`,
          );
        }
      }
    });

    Deno.test(`mla_prefill() attends with kv_b_proj in bf16 (${set}, ${type})`, async () => {
      using kernels = open();
      for (const s of shapesOf(type)) {
        const places = s === real ? [[100, 3]] as const : [[0, 130]] as const;
        const all = typedSequences(kernels, s, type, LAYER, places);
        const rows = countRows(all);
        const q = normals(rows * s.num_attention_heads * queryWidth(s), 14);
        const { tensor, values } = kvB(kernels, s, "bf16");
        const scale = softmaxScale(s);
        assertClose(
          await kernels.mla_prefill(q, tensor, s, scale, all, LAYER),
          attention(s, q, values, all),
          prefillTolerance(set, "bf16", TOLERANCE),
          `rank ${s.kv_lora_rank}`,
        );
      }
    });

    for (
      const [name, places] of [
        ["mla_decode", [[0, 1], [62, 3], [510, 4], [1022, 3]]],
        ["mla_prefill", [[0, 130], [63, 2], [200, 5]]],
      ] as const
    ) {
      const attend = (
        kernels: Kernels,
        s: MlaShape,
        q: Floats,
        all: ReturnType<typeof typedSequences>,
      ) =>
        kernels[name](
          q,
          kvB(kernels, s, "f32").tensor,
          s,
          softmaxScale(s),
          all,
          LAYER,
        );
      const queries = (s: MlaShape, rows: number) =>
        normals(rows * s.num_attention_heads * queryWidth(s), 14);

      Deno.test(`${name}() attends to what the cache reads as (${set}, ${type})`, async () => {
        using kernels = open();
        for (const s of shapesOf(type)) {
          const few = s === real ? [[0, 2], [100, 3]] as const : places;
          const all = typedSequences(kernels, s, type, LAYER, few);
          const q = queries(s, countRows(all));
          const { values } = kvB(kernels, s, "f32");
          assertClose(
            await attend(kernels, s, q, all),
            attention(s, q, values, all),
            // Caches of these types have a path of their own on tensor cores.
            set === "sm90"
              ? attentionTolerance(set, type, TOLERANCE)
              : TOLERANCE,
            `rank ${s.kv_lora_rank}`,
          );
        }
      });

      Deno.test(`${name}() gives a row the same bits alone and with any threads (${set}, ${type})`, async () => {
        const bits: Floats[] = [];
        for (const threads of [1, 2, 3]) {
          using kernels = open(threads);
          const all = typedSequences(kernels, small, type, LAYER, places);
          const rows = countRows(all);
          const q = queries(small, rows);
          const together = await attend(kernels, small, q, all);
          bits.push(together);
          assertSameBits(together, bits[0], `${threads} threads`);
          if (threads !== 2) continue;
          const wide = q.length / rows, out = together.length / rows;
          let first = 0;
          for (const sequence of all) {
            for (let i = 0; i < sequence.rows; i += i < 4 ? 1 : 61) {
              const row = first + i;
              const position = sequence.position + i;
              assertSameBits(
                await attend(
                  kernels,
                  small,
                  q.slice(row * wide, (row + 1) * wide),
                  [{ ...sequence, position, rows: 1 }],
                ),
                together.slice(row * out, (row + 1) * out),
                `position ${position} alone`,
              );
            }
            first += sequence.rows;
          }
        }
      });
    }

    Deno.test(`mlaDecode() weights keys of this type's latents (${set}, ${type})`, async () => {
      using kernels = open();
      const s = small, heads = s.num_attention_heads, w = width(s);
      const all = typedSequences(kernels, s, type, LAYER, [[700, 2], [3, 1]]);
      const q = normals(countRows(all) * heads * w, 13, 2 * w ** -0.5);
      const { outputs } = await kernels.run((program) => {
        const input = program.input(heads * w);
        return {
          inputs: [[input, q]],
          outputs: [program.mlaDecode(input, LAYER, s)],
        };
      }, { rows: countRows(all), sequences: all });
      assertClose(outputs[0], latentAttention(s, q, all), TOLERANCE, type);
    });
  }

  Deno.test(`an int6 cache needs widths of multiples of 16 (${set})`, () => {
    using kernels = open();
    assertThrows(
      () => kernels.cache(odd, 1, { dtype: "int6" }),
      Error,
      "multiples of 16",
    );
  });
}
