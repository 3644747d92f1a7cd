/** How the elements of a cache are stored; see the pools in csrc/include/moela.h. */
export type CacheType = "f32" | "bf16" | "fp8" | "int8" | "int6";

/** All types of a cache. */
export const CACHE_TYPES: readonly CacheType[] = [
  "f32",
  "bf16",
  "fp8",
  "int8",
  "int6",
];

/** Six bits of int6 are an average: a key takes eight, and some latents five. */
const BITS = { f32: 32, bf16: 16, fp8: 8, int8: 8, int6: 6 } as const;

/** Bytes of the elements of one token and layer, `width` of them. */
export function elementBytes(type: CacheType, width: number): number {
  return width * BITS[type] / 8;
}

/** Bytes of the scales of one token and layer: one each for the latent and the rotary key. */
export function scaleBytes(type: CacheType): number {
  return type === "f32" || type === "bf16" ? 0 : 2;
}

/** Bytes of one token and layer. */
export function entryBytes(type: CacheType, width: number): number {
  return elementBytes(type, width) + scaleBytes(type);
}
