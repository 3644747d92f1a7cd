import { checkInteger } from "../arguments.ts";
import { CacheBusyError, DisposedError } from "../errors.ts";
import { type CacheIdentity, saveTimeline } from "./file.ts";
import { toPath } from "./path.ts";
import type { Timeline } from "./timeline.ts";
import type { CacheType } from "./type.ts";

/** What a cache needs of its model. */
export interface CacheOwner {
  readonly disposed: boolean;
  /** Bytes of one token, all layers. */
  bytesPerToken(type: CacheType): number;
  /** What a saved cache of this type belongs to. */
  identity(type: CacheType): Promise<CacheIdentity>;
  /** Told when a cache is made by {@link Cache.fork} or goes away. */
  adopt(cache: Cache): void;
  forget(cache: Cache): void;
}

/** Construction of a {@link Cache}: by `model.createCache()` and `cache.fork()`. */
export interface CacheParts {
  owner: CacheOwner;
  timeline: Timeline;
  type: CacheType;
  /** Tokens at most. */
  capacity: number;
}

/**
 * The latents of one sequence: a mutable timeline that calls extend, and that can be forked and
 * rewound. Only the normed latent and the rotated shared key are stored: `kv_lora_rank +
 * qk_rope_head_dim` elements a token and layer (DeepSeek-V2, section 2.1).
 *
 * @example Two continuations of one prompt
 * ```ts
 * import { loadModel } from "../../mod.ts";
 *
 * await using model = await loadModel(new URL("../../models/nano", import.meta.url));
 * const cache = model.createCache();
 * await model.generate("Once upon a time", { cache, maxTokens: 0 }).result();
 * const other = cache.fork();
 * console.assert(other.length === cache.length);
 * ```
 */
export class Cache implements Disposable, AsyncDisposable {
  /** Element type. */
  readonly type: CacheType;
  /** Tokens that it can hold. */
  readonly capacity: number;
  readonly #owner: CacheOwner;
  #timeline: Timeline | undefined;
  #lock: { onDispose: () => Promise<void> } | undefined;
  #closing: Promise<void> | undefined;

  /** @ignore made by `model.createCache()` */
  constructor(parts: CacheParts) {
    this.type = parts.type;
    this.capacity = parts.capacity;
    this.#owner = parts.owner;
    this.#timeline = parts.timeline;
    parts.owner.adopt(this);
  }

  #open(what: string): Timeline {
    if (this.#owner.disposed) {
      throw new DisposedError(`Cannot ${what}: the cache's model is disposed`);
    }
    if (!this.#timeline || this.#closing) {
      throw new DisposedError(`Cannot ${what}: the cache is disposed`);
    }
    return this.#timeline;
  }

  #idle(what: string): Timeline {
    const timeline = this.#open(what);
    if (this.#lock) {
      throw new CacheBusyError(
        `Cannot ${what}: a call is using the cache; wait for it to settle`,
      );
    }
    return timeline;
  }

  /** Tokens held. */
  get length(): number {
    return this.#open("read the cache's length").length;
  }

  /** A copy of the ids held. */
  get tokens(): number[] {
    return this.#open("read the cache's tokens").tokens.slice();
  }

  /** Bytes on the device. */
  get bytes(): number {
    const { pages, pool } = this.#open("read the cache's size");
    return pages.length * pool.pageBytes;
  }

  /** Bytes that a token takes, all layers, scales included. */
  get bytesPerToken(): number {
    this.#open("read the cache's size");
    return this.#owner.bytesPerToken(this.type);
  }

  /**
   * A cache of the same tokens, independent from now on. What both hold is stored once.
   *
   * @throws CacheBusyError while a call uses this cache
   */
  fork(): Cache {
    return new Cache({
      owner: this.#owner,
      timeline: this.#idle("fork the cache").fork(),
      type: this.type,
      capacity: this.capacity,
    });
  }

  /**
   * Forgets the tokens from `length` on.
   *
   * @throws RangeError beyond the present length; CacheBusyError while a call uses this cache
   */
  truncate(length: number): void {
    const verb = "truncate the cache";
    const timeline = this.#idle(verb);
    checkInteger(verb, "length", length, 0, timeline.length);
    timeline.truncate(length);
  }

  /**
   * Writes the cache to a file, atomically: an old file of that name is whole or replaced.
   * `model.loadCache()` reads it, in this process or another, on this device or another.
   *
   * @throws CacheBusyError while a call uses this cache; Deno's errors of writing
   */
  async save(path: string | URL): Promise<void> {
    const ended = Promise.withResolvers<void>();
    const { timeline, release } = this.acquire(
      "save the cache",
      () => ended.promise,
    );
    try {
      const target = toPath(path, "save the cache");
      const identity = await this.#owner.identity(this.type);
      await saveTimeline(target, timeline, identity);
    } finally {
      release();
      ended.resolve();
    }
  }

  /**
   * Takes the cache for a call. For the engine.
   *
   * @param onDispose ends that call early, and resolves when it has ended
   * @ignore
   */
  acquire(
    what: string,
    onDispose: () => Promise<void>,
  ): { timeline: Timeline; release: () => void } {
    const timeline = this.#idle(what);
    const lock = { onDispose };
    this.#lock = lock;
    const release = () => {
      if (this.#lock === lock) this.#lock = undefined;
    };
    return { timeline, release };
  }

  /** Frees the pages; a call that uses them stops within one step first. */
  dispose(): void {
    this.#close();
  }

  /** As {@link dispose}. */
  [Symbol.dispose]() {
    this.#close();
  }

  /** As {@link dispose}, and waits until the memory is free. */
  async [Symbol.asyncDispose]() {
    await this.#close();
  }

  #close(): Promise<void> {
    return this.#closing ??= (async () => {
      // Not before that call has returned: it reads and writes these pages.
      if (this.#lock) await this.#lock.onDispose();
      this.#timeline?.dispose();
      this.#timeline = undefined;
      this.#owner.forget(this);
    })();
  }
}
