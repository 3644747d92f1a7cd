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

/** Largest latent of each type, in scales. A key is int8 in all of them. */
const LARGEST = { fp8: 448, int8: 127, int6: 31 };

/** Largest element of a part, in scales. */
export const largest = (type: ScaledCacheType, isKey: boolean) =>
  LARGEST[isKey ? "int8" : type];

/** The scale of a code: three bits of mantissa, five of exponent. */
export function scaleOf(code: number): number {
  return code === 0 ? 0 : (8 + code % 8) * 2 ** ((code >> 3) - 27);
}

/** The code of the smallest scale that holds `max`, or else of the largest. */
export function codeOf(max: number, most: number): number {
  for (let code = 0; code < 255; code++) {
    if (scaleOf(code) * most >= max) return code;
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

/** Latents of int6 before this one have six bits, the others five: the lowest is left out. */
export const shortAt = (r: number, w: number) => r - 2 * (w - r);

/** Where the bits of a latent of int6 lie, lowest first: byte and bit. */
function int6Bits(i: number, r: number, w: number): [number, number][] {
  const whole = shortAt(r, w);
  const j = i < whole ? i % 16 : (i - whole) % 32;
  const [half, count] = i < whole ? [8, 6] : [16, 5];
  const group = i < whole
    ? (i - j) * 12 / 16
    : whole * 12 / 16 + (i - whole - j) * 20 / 32;
  return Array.from(
    { length: count },
    (_, bit) =>
      bit < 4
        ? [group + j % half, 4 * Math.floor(j / half) + bit]
        : [group + half + j % 4, Math.floor(j / 4) * (count - 4) + bit - 4],
  );
}

/** Writes x, in scales, to latent i of a row of bytes that were zero. */
function putLatent(
  type: ScaledCacheType,
  row: Uint8Array,
  [i, r, w]: readonly [number, number, number],
  x: number,
) {
  if (type === "fp8") row[i] = toF8(x);
  else if (type === "int8") row[i] = nearest(x) & 0xff;
  else {
    const code = i < shortAt(r, w)
      ? nearest(x) + 32
      : Math.min(nearest(x / 2), 15) + 16;
    for (const [bit, [byte, place]] of int6Bits(i, r, w).entries()) {
      row[byte] |= (code >> bit & 1) << place;
    }
  }
}

/** Latent i in scales. */
function latent(
  type: ScaledCacheType,
  row: Uint8Array,
  [i, r, w]: readonly [number, number, number],
): number {
  if (type === "fp8") return fromF8(row[i]);
  if (type === "int8") return row[i] << 24 >> 24;
  const code = int6Bits(i, r, w).reduce(
    (sum, [byte, place], bit) => sum | (row[byte] >> place & 1) << bit,
    0,
  );
  return i < shortAt(r, w) ? code - 32 : 2 * code - 32;
}

/** An entry `[r + dr]` as bytes, and the codes of its latent and its key. */
export function encodeEntry(type: ScaledCacheType, r: number, entry: Floats) {
  const w = entry.length;
  const row = new Uint8Array(rowBytes(type, w));
  const codes = [[0, r], [r, w]].map(([begin, end]) => {
    const part = entry.subarray(begin, end), isKey = begin > 0;
    const most = largest(type, isKey);
    const code = codeOf(
      part.reduce((max, x) => Math.abs(x) > max ? Math.abs(x) : max, 0),
      most,
    );
    const scale = scaleOf(code);
    part.forEach((x, i) => {
      const steps = scale === 0 || Number.isNaN(x)
        ? 0
        : Math.max(-most, Math.min(most, Math.fround(x / scale)));
      if (isKey) row[row.length - (w - r) + i] = nearest(steps) & 0xff;
      else putLatent(type, row, [i, r, w], steps);
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
    (_, i) =>
      i < r
        ? latent(type, row, [i, r, w]) * scaleOf(codes[0])
        : (row[row.length - w + i] << 24 >> 24) * scaleOf(codes[1]),
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
