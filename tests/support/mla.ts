/** Shapes, caches and definitions in float64 for the tests of multi-head latent attention. */
import type { Kernels, LatentCache, MlaShape } from "../../ffi/mod.ts";
import { type Floats, type FloatType, normals, stored } from "./ops.ts";

export const PAGE = 64;
// Caches have two layers, of which the first is NaN.
export const LAYER = 1;

const shape = (
  heads: number,
  [dn, dr, dv, r]: readonly [number, number, number, number],
): MlaShape => ({
  num_attention_heads: heads,
  qk_nope_head_dim: dn,
  qk_rope_head_dim: dr,
  v_head_dim: dv,
  kv_lora_rank: r,
});
export const small = shape(3, [24, 16, 20, 32]);
export const odd = shape(5, [10, 6, 7, 9]);
export const real = shape(3, [128, 64, 128, 512]);
/** So many heads that CUDA takes 64 at a time. */
export const wide = shape(70, [128, 64, 128, 512]);

export const width = (s: MlaShape) => s.kv_lora_rank + s.qk_rope_head_dim;
export const queryWidth = (s: MlaShape) =>
  s.qk_nope_head_dim + s.qk_rope_head_dim;
export const softmaxScale = (s: MlaShape) => Math.fround(queryWidth(s) ** -0.5);

/** kv_b_proj `[heads (dn + dv), r]` on the device, and its values. */
export function kvB(kernels: Kernels, s: MlaShape, type: FloatType) {
  const rows = s.num_attention_heads * (s.qk_nope_head_dim + s.v_head_dim);
  const { data, values } = stored(
    normals(rows * s.kv_lora_rank, 7, s.kv_lora_rank ** -0.5),
    type,
  );
  return { tensor: kernels.tensor(data, rows, s.kv_lora_rank), values };
}

/** Fills the pages of a cache with entries of layer {@linkcode LAYER}; all else in it is NaN. */
export function writeEntries(
  kernels: Kernels,
  s: MlaShape,
  type: FloatType,
  cache: LatentCache,
  entries: Floats,
) {
  const w = width(s);
  for (let p = 0; p * PAGE * w < entries.length; p++) {
    const page = new Float32Array(2 * PAGE * w).fill(NaN);
    page.set(entries.subarray(p * PAGE * w, (p + 1) * PAGE * w), PAGE * w);
    const { data } = stored(page, type);
    kernels.model.writePage(
      cache.pool,
      cache.pages[p],
      new Uint8Array(data.buffer),
    );
  }
}

/** A cache of `tokens` random entries in reversed pages; all else in it is NaN. */
export function filledCache(
  kernels: Kernels,
  s: MlaShape,
  tokens: number,
  type: FloatType,
  seed: number,
): { cache: LatentCache; entries: Floats } {
  const w = width(s);
  const cache = kernels.cache(s, tokens, {
    dtype: type,
    layers: 2,
    shuffle: true,
  });
  const { values } = stored(normals(tokens * w, seed), type);
  writeEntries(kernels, s, type, cache, values);
  return { cache, entries: values };
}

/** Rows at the end of a sequence, and its cache. */
export interface Sequence {
  cache: LatentCache;
  entries: Floats;
  position: number;
  rows: number;
}

export function sequences(
  kernels: Kernels,
  s: MlaShape,
  type: FloatType,
  places: readonly (readonly [position: number, rows: number])[],
): Sequence[] {
  return places.map(([position, rows], i) => ({
    ...filledCache(kernels, s, position + rows, type, 100 + i),
    position,
    rows,
  }));
}

export const countRows = (all: readonly { rows: number }[]) =>
  all.reduce((sum, { rows }) => sum + rows, 0);

/** Softmax of `scores` times `values(key)`, `n` elements. */
function weighted(
  scores: readonly number[],
  n: number,
  values: (key: number) => ArrayLike<number>,
): Float64Array {
  const max = Math.max(...scores);
  const exps = scores.map((score) => Math.exp(score - max));
  const sum = exps.reduce((a, b) => a + b);
  const out = new Float64Array(n);
  exps.forEach((e, key) => {
    const value = values(key);
    for (let j = 0; j < n; j++) out[j] += e / sum * value[j];
  });
  return out;
}

export function dot(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** Calls `each(head, position, sequence, index)` for every head of every row. */
function* headRows(s: MlaShape, all: readonly Sequence[]) {
  let index = 0;
  for (const sequence of all) {
    for (let i = 0; i < sequence.rows; i++) {
      for (let head = 0; head < s.num_attention_heads; head++) {
        const keys = sequence.position + i + 1;
        yield { head, keys, sequence, index: index++ };
      }
    }
  }
}

/** The definition of mla_decode. */
export function latentAttention(
  s: MlaShape,
  q: Floats,
  all: readonly Sequence[],
) {
  const w = width(s), r = s.kv_lora_rank;
  const out: number[] = [];
  for (const { keys, sequence, index } of headRows(s, all)) {
    const entry = (key: number) =>
      sequence.entries.subarray(key * w, (key + 1) * w);
    const query = q.subarray(index * w, (index + 1) * w);
    const scores = Array.from(
      { length: keys },
      (_, key) => dot(query, entry(key)),
    );
    out.push(...weighted(scores, r, entry));
  }
  return out;
}

/** The definition of attention: keys and values up-projected by W, all of them. */
export function attention(
  s: MlaShape,
  q: Floats,
  kvB: Floats,
  all: readonly Sequence[],
) {
  const { kv_lora_rank: r, qk_nope_head_dim: dn, v_head_dim: dv } = s;
  const w = width(s), scale = softmaxScale(s);
  const projected = new Map<string, Float64Array>();
  const out: number[] = [];
  for (const { head, keys, sequence, index } of headRows(s, all)) {
    const kv = (key: number) => {
      const name = `${all.indexOf(sequence)} ${head} ${key}`;
      let found = projected.get(name);
      if (!found) {
        const latent = sequence.entries.subarray(key * w, key * w + r);
        found = Float64Array.from({ length: dn + dv }, (_, i) => {
          const row = head * (dn + dv) + i;
          return dot(latent, kvB.subarray(row * r, (row + 1) * r));
        });
        projected.set(name, found);
      }
      return found;
    };
    const query = q.subarray(
      index * queryWidth(s),
      (index + 1) * queryWidth(s),
    );
    const scores = Array.from({ length: keys }, (_, key) => {
      const rotary = sequence.entries.subarray(key * w + r, (key + 1) * w);
      return scale *
        (dot(query.subarray(0, dn), kv(key)) + dot(rotary, query.subarray(dn)));
    });
    out.push(...weighted(scores, dv, (key) => kv(key).subarray(dn)));
  }
  return out;
}
