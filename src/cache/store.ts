import type { NativeModel } from "../../ffi/mod.ts";
import {
  checkChoice,
  checkInteger,
  checkOptionsObject,
  wrongType,
} from "../arguments.ts";
import { DisposedError } from "../errors.ts";
import type { ModelConfig } from "../model/config.ts";
import { Cache, type CacheOwner } from "./cache.ts";
import { CACHE_TYPES, type CacheType, entryBytes } from "./type.ts";
import { type CacheIdentity, loadTimeline, savedType } from "./file.ts";
import { PageBudget, PagePool } from "./pages.ts";
import { toPath } from "./path.ts";
import { PrefixCache } from "./prefix.ts";
import { Timeline } from "./timeline.ts";

/** Options of `model.createCache()`. */
export interface CacheOptions {
  /** Tokens to reserve pages for; it grows to the model's maximum when absent. */
  capacity?: number;
  /** Element type; "auto" (default): f32 when the weights run in f32, else bf16. */
  type?: "auto" | CacheType;
}

/** What a {@link CacheStore} needs of its model. */
export interface CacheStoreParts {
  config: ModelConfig;
  native: NativeModel;
  /** Bytes of all pages, and the part of them that may keep finished prefixes. */
  cacheBytes: number;
  prefixCacheBytes: number;
  /** Type that the weights run in. */
  weightsType: string;
  /** Digest of config and weights. */
  fingerprint: () => Promise<string>;
}

/** A timeline in use by a call. */
export interface HeldTimeline {
  timeline: Timeline;
  /** Ends the use, and whatever waits for its end. */
  release: () => void;
}

/** The caches of a model: their pages, the prefixes that finished requests left, who uses what. */
export class CacheStore implements CacheOwner {
  readonly #parts: CacheStoreParts;
  readonly #budget: PageBudget;
  readonly #pools = new Map<CacheType, PagePool>();
  readonly #prefixes = new Map<PagePool, PrefixCache>();
  readonly #caches = new Set<Cache>();
  #disposed = false;

  constructor(parts: CacheStoreParts) {
    this.#parts = parts;
    this.#budget = new PageBudget(parts.cacheBytes);
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** Bytes of pages that are held, and of those that only keep prefixes. */
  get bytes(): { caches: number; prefixCache: number } {
    let caches = 0, prefixCache = 0;
    for (const { held, idle, pageBytes } of this.#pools.values()) {
      caches += held * pageBytes;
      prefixCache += idle * pageBytes;
    }
    return { caches, prefixCache };
  }

  bytesPerToken(type: CacheType): number {
    const [layers, width] = this.#shape();
    return layers * entryBytes(type, width);
  }

  #shape(): readonly [layers: number, width: number] {
    const { num_hidden_layers, kv_lora_rank, qk_rope_head_dim } =
      this.#parts.config;
    return [num_hidden_layers, kv_lora_rank + qk_rope_head_dim];
  }

  async identity(type: CacheType): Promise<CacheIdentity> {
    const { fingerprint, weightsType } = this.#parts;
    const model = await fingerprint();
    return { model, weights: weightsType, type, shape: this.#shape() };
  }

  adopt(cache: Cache) {
    this.#caches.add(cache);
  }

  forget(cache: Cache) {
    this.#caches.delete(cache);
  }

  #pool(type: CacheType): PagePool {
    const { config, native, prefixCacheBytes } = this.#parts;
    let pool = this.#pools.get(type);
    if (!pool) {
      pool = new PagePool(native, this.#budget, {
        dtype: type,
        layers: config.num_hidden_layers,
        kv_lora_rank: config.kv_lora_rank,
        qk_rope_head_dim: config.qk_rope_head_dim,
      });
      this.#pools.set(type, pool);
      const pages = Math.floor(prefixCacheBytes / pool.pageBytes);
      if (pages > 0) this.#prefixes.set(pool, new PrefixCache(pool, pages));
    }
    return pool;
  }

  #type(type: "auto" | CacheType = "auto"): CacheType {
    if (type !== "auto") return type;
    return this.#parts.weightsType === "f32" ? "f32" : "bf16";
  }

  /** An empty cache; see `model.createCache()`. */
  create(options: CacheOptions): Cache {
    const { config } = this.#parts;
    const maximum = config.max_position_embeddings;
    checkCacheOptions(options, maximum, [
      config.kv_lora_rank,
      config.qk_rope_head_dim,
    ]);
    const { capacity } = options;
    const type = this.#type(options.type);
    const timeline = new Timeline(this.#pool(type), capacity);
    return new Cache({
      owner: this,
      timeline,
      type,
      capacity: capacity ?? maximum,
    });
  }

  /** Reads a saved cache; see `model.loadCache()`. */
  async load(path: string | URL): Promise<Cache> {
    const what = "load the cache";
    const source = toPath(path, what);
    const type = await savedType(source);
    const identity = await this.identity(type);
    this.#checkOpen(what);
    const timeline = new Timeline(this.#pool(type));
    const { max_position_embeddings: capacity, vocab_size } =
      this.#parts.config;
    try {
      await loadTimeline(source, timeline, identity, {
        vocab_size,
        maximum: capacity,
      });
      this.#checkOpen(what);
    } catch (error) {
      timeline.dispose();
      throw error;
    }
    return new Cache({ owner: this, timeline, type, capacity });
  }

  #checkOpen(what: string) {
    if (this.#disposed) {
      throw new DisposedError(`Cannot ${what}: the model is disposed`);
    }
  }

  /**
   * Takes a timeline for a call: the given cache's, or one that goes away with the call.
   *
   * @param cancel ends the call early, when its cache is disposed
   */
  hold(
    cache: Cache | undefined,
    what: string,
    cancel: (reason: unknown) => void,
  ): HeldTimeline {
    if (cache === undefined) {
      const timeline = new Timeline(this.#pool(this.#type()));
      return { timeline, release: () => timeline.dispose() };
    }
    if (!(cache instanceof Cache)) {
      throw wrongType(what, "cache", cache, "made by createCache()");
    }
    if (!this.#caches.has(cache)) {
      void cache.length; // a disposed one says so itself
      throw new TypeError(
        `Cannot ${what}: cache belongs to another model, and must be of this one`,
      );
    }
    const ended = Promise.withResolvers<void>();
    const { timeline, release } = cache.acquire(what, () => {
      cancel(new DisposedError(`Cannot ${what}: the cache was disposed`));
      return ended.promise;
    });
    return {
      timeline,
      release: () => {
        release();
        ended.resolve();
      },
    };
  }

  /** Where a timeline's finished prefixes are kept; undefined when they are not. */
  prefixOf(timeline: Timeline): PrefixCache | undefined {
    return this.#prefixes.get(timeline.pool);
  }

  /** Gives up all kept prefixes. */
  clearPrefixes() {
    for (const prefix of this.#prefixes.values()) prefix.clear();
  }

  /** From now on caches say that the model is disposed. */
  close() {
    this.#disposed = true;
  }

  /** Disposes every cache and waits for it. */
  async dispose(): Promise<void> {
    await Promise.all(
      [...this.#caches].map((cache) => cache[Symbol.asyncDispose]()),
    );
  }
}

function checkCacheOptions(
  options: CacheOptions,
  maximum: number,
  widths: readonly number[],
) {
  const verb = "create a cache";
  checkOptionsObject(verb, options, ["capacity", "type"]);
  const { capacity, type = "auto" } = options;
  checkChoice(verb, "type", type, ["auto", ...CACHE_TYPES]);
  if (type === "int6" && widths.some((width) => width % 16 !== 0)) {
    throw new RangeError(
      `Cannot ${verb}: type is int6, which takes latents and rotary keys of multiples of 16 elements, ` +
        `and the model's have ${widths.join(" and ")}`,
    );
  }
  if (type === "int6" && widths[0] < 2 * widths[1]) {
    throw new RangeError(
      `Cannot ${verb}: type is int6, which takes latents of at least twice the rotary key's width, ` +
        `and the model's have ${widths.join(" and ")}`,
    );
  }
  if (capacity !== undefined) {
    checkInteger(verb, "capacity", capacity, 1, maximum);
  }
}
