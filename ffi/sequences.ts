import type { NativeStep, SegmentValues } from "./step.ts";

/** Types that a cache keeps its entries in: the formats are written beside `moela_pool_desc`. */
export type CacheDType = "f32" | "bf16" | "fp8" | "int8" | "int6";

/** A latent cache on the device: `tokens` of one sequence, in pages that lie in any order. */
export interface LatentCache {
  /** Id of the pool in {@link Kernels.model}. */
  readonly pool: number;
  /** Entry i is the page of tokens `[64 i, 64 i + 64)`. */
  readonly pages: Int32Array<ArrayBuffer>;
  /** Width of the normed latent, the first part of an entry. */
  readonly kv_lora_rank: number;
  /** Width of the rotated shared key, the second part. */
  readonly qk_rope_head_dim: number;
}

/** Rows of one sequence for an operation on a cache. */
export interface CacheRows {
  /** Where the sequence lies. */
  cache: LatentCache;
  /** Position of the first row. */
  position: number;
  /** How many rows. */
  rows: number;
}

/** What a run of recorded operations needs beside its inputs. */
export interface RunOptions {
  /** Rows of the step. */
  rows: number;
  /** Rows on the absorbed path; default: all. */
  absorbed?: number;
  /** Sequences; default: one that starts at position 0 and has no cache. */
  sequences?: readonly CacheRows[];
  /** Token ids, for `embed`. */
  tokens?: readonly number[];
  /** Rows that ask for logits; default: none. */
  logitRows?: readonly number[];
  /** Further arguments of the step. */
  step?: Partial<NativeStep>;
  /** At most so many logits rows at once; default: all rows. */
  maxLogits?: number;
  /**
   * Which values keep their place until the end; default: all. With "outputs" a device may store
   * others as it likes, and do operations at once.
   */
  keep?: "all" | "outputs";
}

/** A step without a cache: one sequence of some rows. */
export const ALONE = {
  row: 0,
  rows: 0,
  position: 0,
  pool: 0,
  page: 0,
  n_pages: 0,
};

/** The segments and page tables of sequences, their rows one after the other. */
export function layOut(
  sequences: readonly CacheRows[],
  rows: number,
): { segments: SegmentValues[]; pages: Int32Array<ArrayBuffer> } {
  if (sequences.length === 0) {
    return { segments: [{ ...ALONE, rows }], pages: new Int32Array() };
  }
  let row = 0;
  const pages: number[] = [];
  const segments = sequences.map(({ cache, position, rows }) => {
    const segment = {
      row,
      rows,
      position,
      pool: cache.pool,
      page: pages.length,
      n_pages: cache.pages.length,
    };
    row += rows;
    pages.push(...cache.pages);
    return segment;
  });
  return { segments, pages: Int32Array.from(pages) };
}
