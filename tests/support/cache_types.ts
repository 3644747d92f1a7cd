/** Cache types with scales as csrc/include/moela.h defines them, in float64, and caches of them. */
import type { CacheDType, Kernels, MlaShape } from "../../ffi/mod.ts";
import { PAGE, type Sequence, width } from "./mla.ts";
import { fromF8, toF8 } from "./numbers.ts";
import { type Floats, normals } from "./ops.ts";

/** The types with scales. */
export type ScaledCacheType = Exclude<CacheDType, "f32" | "bf16">;
export const scaledCacheTypes: readonly ScaledCacheType[] = [
  "fp8",
  "int8",
  "int6",
];

/** Largest element of each type, in scales. */
export const LARGEST = { fp8: 448, int8: 127, int6: 31 };

/** The scale of a code: three bits of mantissa, five of exponent. */
export function scaleOf(code: number): number {
  return code === 0 ? 0 : (8 + code % 8) * 2 ** ((code >> 3) - 27);
}

/** The code of the smallest scale that holds `max`, or else of the largest. */
export function codeOf(max: number, type: ScaledCacheType): number {
  for (let code = 0; code < 255; code++) {
    if (scaleOf(code) * LARGEST[type] >= max) return code;
  }
  return 255;
}

function nearest(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
}

/** Bytes of a token's elements. */
export const rowBytes = (type: ScaledCacheType, w: number) =>
  type === "int6" ? w * 3 / 4 : w;

/** Writes x to element i of a row of bytes that were zero. */
function putElement(
  type: ScaledCacheType,
  row: Uint8Array,
  i: number,
  x: number,
) {
  if (type === "fp8") row[i] = toF8(x);
  else if (type === "int8") row[i] = nearest(x) & 0xff;
  else {
    const q = nearest(x) + 32, j = i % 16, group = (i - j) / 16 * 12;
    row[group + j % 8] |= (q & 15) << (j < 8 ? 0 : 4);
    row[group + 8 + j % 4] |= (q >> 4) << 2 * Math.floor(j / 4);
  }
}

function element(type: ScaledCacheType, row: Uint8Array, i: number): number {
  if (type === "fp8") return fromF8(row[i]);
  if (type === "int8") return row[i] << 24 >> 24;
  const j = i % 16, group = (i - j) / 16 * 12;
  const low = row[group + j % 8] >> (j < 8 ? 0 : 4) & 15;
  const high = row[group + 8 + j % 4] >> 2 * Math.floor(j / 4) & 3;
  return (high << 4 | low) - 32;
}

/** An entry `[r + dr]` as bytes, and the codes of its latent and its key. */
export function encodeEntry(type: ScaledCacheType, r: number, entry: Floats) {
  const row = new Uint8Array(rowBytes(type, entry.length));
  const codes = [[0, r], [r, entry.length]].map(([begin, end]) => {
    const part = entry.subarray(begin, end);
    const code = codeOf(
      part.reduce((max, x) => Math.abs(x) > max ? Math.abs(x) : max, 0),
      type,
    );
    const scale = scaleOf(code), most = LARGEST[type];
    part.forEach((x, i) => {
      const steps = scale === 0 || Number.isNaN(x)
        ? 0
        : Math.max(-most, Math.min(most, Math.fround(x / scale)));
      putElement(type, row, begin + i, steps);
    });
    return code;
  });
  return { row, codes };
}

/** What a token's bytes read as. */
export function decodeEntry(
  type: ScaledCacheType,
  r: number,
  w: number,
  row: Uint8Array,
  codes: ArrayLike<number>,
): Floats {
  return Float32Array.from(
    { length: w },
    (_, i) => element(type, row, i) * scaleOf(codes[i < r ? 0 : 1]),
  );
}

/** Where a token of a layer lies within a page: its elements, then its scales. */
export function tokenBytes(
  page: Uint8Array<ArrayBuffer>,
  type: ScaledCacheType,
  w: number,
  layer: number,
  token: number,
) {
  const bytes = rowBytes(type, w);
  const begin = layer * PAGE * (bytes + 2);
  const at = begin + token * bytes;
  const scales = begin + PAGE * bytes + 2 * token;
  return {
    row: page.subarray(at, at + bytes),
    codes: page.subarray(scales, scales + 2),
  };
}

/** Caches of random entries in reversed pages; every other byte of them is 0x7f. */
export function typedSequences(
  kernels: Kernels,
  s: MlaShape,
  type: ScaledCacheType,
  layer: number,
  places: readonly (readonly [position: number, rows: number])[],
): Sequence[] {
  const w = width(s), r = s.kv_lora_rank;
  return places.map(([position, rows], i) => {
    const tokens = position + rows;
    const cache = kernels.cache(s, tokens, {
      dtype: type,
      layers: 2,
      shuffle: true,
    });
    const random = normals(tokens * w, 100 + i);
    const entries = new Float32Array(tokens * w);
    for (const [p, id] of cache.pages.entries()) {
      const page = new Uint8Array(2 * PAGE * (rowBytes(type, w) + 2)).fill(127);
      for (let token = 0; token < Math.min(PAGE, tokens - p * PAGE); token++) {
        const from = (p * PAGE + token) * w;
        const entry = encodeEntry(type, r, random.subarray(from, from + w));
        const to = tokenBytes(page, type, w, layer, token);
        to.row.set(entry.row);
        to.codes.set(entry.codes);
        entries.set(decodeEntry(type, r, w, entry.row, entry.codes), from);
      }
      kernels.model.writePage(cache.pool, id, page);
    }
    return { cache, entries, position, rows };
  });
}
