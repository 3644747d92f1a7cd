import type { NativeModel } from "../../ffi/mod.ts";
import { OutOfMemoryError } from "../errors.ts";

/** Bytes and geometry of a pool. */
export interface PagePoolOptions {
  dtype: "f32" | "bf16";
  layers: number;
  kv_lora_rank: number;
  qk_rope_head_dim: number;
  /** Bytes that the pages may take. */
  bytes: number;
}

/** Address space that one pool reserves at most, in bytes. */
const MAX_RESERVED = 2 ** 43;

/**
 * The pages of one cache type: which are free, and how many caches share each. Memory is the
 * library's; a page that nobody holds gives its memory back.
 */
export class PagePool {
  readonly id: number;
  readonly pageBytes: number;
  /** How many pages there may be. */
  readonly maxPages: number;
  readonly #model: NativeModel;
  readonly #references: number[] = [];
  readonly #free: number[] = [];
  #held = 0;

  constructor(model: NativeModel, options: PagePoolOptions) {
    const { dtype, layers, kv_lora_rank, qk_rope_head_dim, bytes } = options;
    const elements = layers * (kv_lora_rank + qk_rope_head_dim) * 64;
    const pageBytes = elements * (dtype === "f32" ? 4 : 2);
    this.#model = model;
    this.maxPages = Math.max(
      1,
      Math.min(
        Math.floor(bytes / pageBytes),
        Math.floor(MAX_RESERVED / pageBytes),
        2 ** 31 - 1,
      ),
    );
    this.id = model.addPool({
      dtype,
      layers,
      kv_lora_rank,
      qk_rope_head_dim,
      max_pages: this.maxPages,
    });
    this.pageBytes = model.pageBytes(this.id);
  }

  /** Pages in use. */
  get held(): number {
    return this.#held;
  }

  /** Pages that can still be taken. */
  get available(): number {
    return this.maxPages - this.#held;
  }

  /** Takes `count` pages, or none and throws. */
  take(count: number): number[] {
    if (count > this.available) {
      throw new OutOfMemoryError(
        `Cannot extend the cache: ${count} pages of ${this.pageBytes} bytes are needed, ` +
          `and ${this.available} are free; cacheBytes sets how many there are`,
        {
          bytesAsked: count * this.pageBytes,
          bytesFree: this.available * this.pageBytes,
        },
      );
    }
    const pages: number[] = [];
    for (let i = 0; i < count; i++) {
      const page = this.#free.pop() ?? this.#references.length;
      this.#references[page] = 1;
      pages.push(page);
    }
    this.#held += count;
    return pages;
  }

  /** One more holder for each page. */
  share(pages: readonly number[]) {
    for (const page of pages) this.#references[page]++;
  }

  /** Whether others hold the page too. */
  isShared(page: number): boolean {
    return this.#references[page] > 1;
  }

  /** One holder fewer; pages that nobody holds are free again. */
  release(pages: readonly number[]) {
    const freed = pages.filter((page) => --this.#references[page] === 0);
    this.#free.push(...freed);
    this.#held -= freed.length;
    this.#model.releasePages(this.id, Int32Array.from(freed));
  }

  /** Copies the first `tokens` tokens of a page to another. */
  copy(from: number, to: number, tokens: number) {
    this.#model.copyPage(this.id, from, to, tokens);
  }
}
