/**
 * The error classes of the library. Every message names the thing, what is
 * wrong with it and what would be right.
 *
 * @module
 */

/**
 * A checkpoint cannot be used: a damaged or hostile file, a config outside the
 * family, a tensor that is missing, superfluous, or of the wrong shape or type.
 * The message names the file, the tensor, what was expected and what was found.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { CheckpointError } from "./errors.ts";
 *
 * const error = new CheckpointError("config.json: num_hidden_layers is 0");
 * assertEquals(error.name, "CheckpointError");
 * ```
 */
export class CheckpointError extends Error {
  /** Always "CheckpointError". */
  override name = "CheckpointError";
}

/**
 * A saved cache cannot be loaded: the file is damaged, or belongs to another
 * checkpoint, weight type, cache type or layout.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { CacheFileError } from "./errors.ts";
 *
 * const error = new CacheFileError("story.cache: of another model");
 * assertEquals(error.name, "CacheFileError");
 * ```
 */
export class CacheFileError extends Error {
  /** Always "CacheFileError". */
  override name = "CacheFileError";
}

/**
 * A cache is in use by another call. It serves one call at a time; wait until
 * that call has settled, or work on a `fork()` made before it.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { CacheBusyError } from "./errors.ts";
 *
 * const error = new CacheBusyError("Cannot fork: the cache is in use");
 * assertEquals(error.name, "CacheBusyError");
 * ```
 */
export class CacheBusyError extends Error {
  /** Always "CacheBusyError". */
  override name = "CacheBusyError";
}

/**
 * A model or a cache was used after its `dispose()`, or was disposed while a
 * call was running.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { DisposedError } from "./errors.ts";
 *
 * const error = new DisposedError("Cannot generate: the model is disposed");
 * assertEquals(error.name, "DisposedError");
 * ```
 */
export class DisposedError extends Error {
  /** Always "DisposedError". */
  override name = "DisposedError";
}

/**
 * Memory for weights, workspace or cache pages is not to be had: the request
 * could not run even alone.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { OutOfMemoryError } from "./errors.ts";
 *
 * const error = new OutOfMemoryError("Cannot load: 8 GiB asked, 2 GiB free", {
 *   bytesAsked: 2 ** 33,
 *   bytesFree: 2 ** 31,
 * });
 * assertEquals(error.bytesFree, 2 ** 31);
 * ```
 */
export class OutOfMemoryError extends Error {
  /** Always "OutOfMemoryError". */
  override name = "OutOfMemoryError";
  /** Bytes that were asked for. */
  readonly bytesAsked: number;
  /** Bytes that were free when they were asked for. */
  readonly bytesFree: number;

  /**
   * Makes the error.
   *
   * @param message What could not be allocated, and what would help.
   * @param options `bytesAsked` and `bytesFree` in bytes, and the `cause`.
   */
  constructor(
    message: string,
    options: ErrorOptions & { bytesAsked: number; bytesFree: number },
  ) {
    super(message, options);
    this.bytesAsked = options.bytesAsked;
    this.bytesFree = options.bytesFree;
  }
}

/**
 * The kernel library failed in a way that no other class describes, or could
 * not be opened: then the message names the path that was tried and the task
 * that builds it.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { NativeError } from "./errors.ts";
 *
 * const error = new NativeError("moela_program_run: bad handle", { status: 3 });
 * assertEquals(error.status, 3);
 * ```
 */
export class NativeError extends Error {
  /** Always "NativeError". */
  override name = "NativeError";
  /** The library's status code; absent when no call was made. */
  readonly status?: number;

  /**
   * Makes the error.
   *
   * @param message The library's own words, or why it could not be opened.
   * @param options `status`, the library's status code, and the `cause`.
   */
  constructor(message: string, options?: ErrorOptions & { status?: number }) {
    super(message, options);
    this.status = options?.status;
  }
}
