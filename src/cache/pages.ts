import { type NativeModel, PAGE_TOKENS } from "../../ffi/mod.ts";
import { OutOfMemoryError } from "../errors.ts";
import { type CacheType, entryBytes } from "./type.ts";

/** Bytes and geometry of a pool. */
export interface PagePoolOptions {
  dtype: CacheType;
  layers: number;
  kv_lora_rank: number;
  qk_rope_head_dim: number;
}

/** The bytes that all pools of a model share. */
export class PageBudget {
  /** Bytes of all pages. */
  readonly bytes: number;
  readonly #pools: PagePool[] = [];

  constructor(bytes: number) {
    this.bytes = bytes;
  }

  join(pool: PagePool) {
    this.#pools.push(pool);
  }

  /** Bytes that no page takes. */
  get free(): number {
    return this.#pools.reduce(
      (free, { held, idle, pageBytes }) => free - (held + idle) * pageBytes,
      this.bytes,
    );
  }

  /** Bytes of pages that only keep prefixes. */
  get idle(): number {
    return this.#pools.reduce(
      (sum, { idle, pageBytes }) => sum + idle * pageBytes,
      0,
    );
  }

  /** Has idle pages given up, of `first` before those of other pools. */
  reclaim(bytes: number, first: PagePool) {
    const others = this.#pools.filter((pool) => pool !== first);
    for (const pool of [first, ...others]) {
      const missing = bytes - this.free;
      if (missing <= 0) return;
      pool.reclaim?.(Math.ceil(missing / pool.pageBytes));
    }
  }
}

/** Address space that one pool reserves at most, in bytes. */
const MAX_RESERVED = 2 ** 43;

/**
 * The pages of one cache type: which are free, how many timelines hold each, and which the prefix
 * cache keeps. Memory is the library's; a free page has given its memory back.
 */
export class PagePool {
  readonly id: number;
  readonly pageBytes: number;
  /** How many pages there may be. */
  readonly maxPages: number;
  /** Asked to give kept pages up when none are free: at least so many, if it can. */
  reclaim: ((count: number) => void) | undefined;
  readonly #model: NativeModel;
  readonly #budget: PageBudget;
  readonly #holders: number[] = [];
  readonly #kept: boolean[] = [];
  readonly #free: number[] = [];
  #used = 0;
  #idle = 0;

  constructor(
    model: NativeModel,
    budget: PageBudget,
    options: PagePoolOptions,
  ) {
    const { dtype, layers, kv_lora_rank, qk_rope_head_dim } = options;
    const width = kv_lora_rank + qk_rope_head_dim;
    const pageBytes = layers * PAGE_TOKENS * entryBytes(dtype, width);
    this.#model = model;
    this.#budget = budget;
    const most = Math.min(budget.bytes, MAX_RESERVED);
    this.maxPages = Math.min(
      Math.max(Math.floor(most / pageBytes), 1),
      2 ** 31 - 1,
    );
    this.id = model.addPool({
      dtype,
      layers,
      kv_lora_rank,
      qk_rope_head_dim,
      max_pages: this.maxPages,
    });
    this.pageBytes = model.pageBytes(this.id);
    budget.join(this);
  }

  /** Pages that timelines hold. */
  get held(): number {
    return this.#used - this.#idle;
  }

  /** Pages that only the prefix cache keeps. */
  get idle(): number {
    return this.#idle;
  }

  /** Pages that can still be taken. */
  get available(): number {
    const { free, idle } = this.#budget;
    const affordable = Math.floor((free + idle) / this.pageBytes);
    return Math.min(affordable, this.maxPages - this.held);
  }

  /** Takes `count` pages, or none and throws. */
  take(count: number): number[] {
    const { available } = this;
    if (count > available) {
      throw new OutOfMemoryError(
        `Cannot extend the cache: ${count} pages of ${this.pageBytes} bytes are needed, ` +
          `and ${available} are free; cacheBytes sets how many there are`,
        {
          bytesAsked: count * this.pageBytes,
          bytesFree: available * this.pageBytes,
        },
      );
    }
    this.#budget.reclaim(count * this.pageBytes, this);
    const pages: number[] = [];
    for (let i = 0; i < count; i++) {
      const page = this.#free.pop() ?? this.#holders.length;
      this.#holders[page] = 1;
      this.#kept[page] = false;
      pages.push(page);
    }
    this.#used += count;
    return pages;
  }

  /** One more holder for each page. */
  share(pages: readonly number[]) {
    for (const page of pages) {
      if (this.#holders[page]++ === 0) this.#idle--;
    }
  }

  /** Whether a holder may not write to the page because others read it. */
  isShared(page: number): boolean {
    return this.#holders[page] > 1 || this.#kept[page];
  }

  /** Whether the prefix cache is all that a page is left to. */
  isIdle(page: number): boolean {
    return this.#kept[page] && this.#holders[page] === 0;
  }

  /** One holder fewer; pages that are left to nobody are free again. */
  release(pages: readonly number[]) {
    const freed: number[] = [];
    for (const page of pages) {
      if (--this.#holders[page] > 0) continue;
      if (this.#kept[page]) this.#idle++;
      else freed.push(page);
    }
    this.#give(freed);
  }

  /** The prefix cache keeps a page that somebody holds. */
  keep(page: number) {
    this.#kept[page] = true;
  }

  /** The prefix cache lets go of pages. */
  unkeep(pages: readonly number[]) {
    const freed = pages.filter((page) => {
      this.#kept[page] = false;
      return this.#holders[page] === 0;
    });
    this.#idle -= freed.length;
    this.#give(freed);
  }

  #give(pages: readonly number[]) {
    this.#free.push(...pages);
    this.#used -= pages.length;
    // A model that is gone has given everything back.
    if (this.#model.disposed) return;
    this.#model.releasePages(this.id, Int32Array.from(pages));
  }

  /** A copy of a whole page's bytes. */
  read(page: number): Uint8Array<ArrayBuffer> {
    return this.#model.readPage(this.id, page);
  }

  /** Fills a whole page. */
  write(page: number, bytes: Uint8Array<ArrayBuffer>) {
    this.#model.writePage(this.id, page, bytes);
  }

  /** Copies the first `tokens` tokens of a page to another. */
  copy(from: number, to: number, tokens: number) {
    this.#model.copyPage(this.id, from, to, tokens);
  }
}
