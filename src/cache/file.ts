/**
 * Saved caches: a safetensors file of tokens and latents whose metadata says what it belongs to.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { CacheFileError, CheckpointError } from "../errors.ts";
import {
  readSafetensorsHeader,
  type SafetensorsHeader,
} from "../weights/safetensors.ts";
import {
  CACHE_TYPES,
  type CacheType,
  elementBytes,
  entryBytes,
  scaleBytes,
} from "./type.ts";
import type { Timeline } from "./timeline.ts";

/** What a saved cache belongs to: it is loaded only where all of it is the same. */
export interface CacheIdentity {
  /** Digest of the checkpoint's config and weights. */
  model: string;
  /** Type that the weights run in. */
  weights: string;
  /** Element type of the cache. */
  type: CacheType;
  /** `[layers, kv_lora_rank + qk_rope_head_dim]` */
  shape: readonly [layers: number, width: number];
}

const FORMAT = "moela-cache";
const VERSION = "1";
/** Pages in the file are whole: layers of 64 tokens each, latent then rotary key; then their scales. */
const ORDER = "page,layer,token,latent+rope";
/** What else a layout says: the elements, where those of earlier files were others. */
const LAYOUTS: Record<CacheType, string> = {
  f32: ORDER,
  bf16: ORDER,
  int8: ORDER,
  fp8: `${ORDER}:e4m3+int8`,
  int6: `${ORDER}:int6/int5+int8`,
};
const PAGE_TOKENS = 64;

/** A page's tensor: elements where they are numbers of a type, else a layer's bytes. */
function pagesTensor(
  { type, shape: [layers, width] }: CacheIdentity,
  n: number,
) {
  return type === "f32" || type === "bf16"
    ? { dtype: type.toUpperCase(), shape: [n, layers, PAGE_TOKENS, width] }
    : {
      dtype: "U8",
      shape: [n, layers, PAGE_TOKENS * entryBytes(type, width)],
    };
}

/** Sets what lies beyond the last token to zero: it is nobody's business. */
function clearTail(
  page: Uint8Array<ArrayBuffer>,
  tokens: number,
  { type, shape: [layers, width] }: CacheIdentity,
) {
  let begin = 0;
  for (let layer = 0; layer < layers; layer++) {
    for (const bytes of [elementBytes(type, width), scaleBytes(type)]) {
      page.fill(0, begin + tokens * bytes, begin + PAGE_TOKENS * bytes);
      begin += PAGE_TOKENS * bytes;
    }
  }
}

/** The pages of a timeline, one after another. */
function* pagesOf(timeline: Timeline, identity: CacheIdentity) {
  const { pool, pages, length } = timeline;
  for (let i = 0; i * PAGE_TOKENS < length; i++) {
    const page = pool.read(pages[i]);
    const tokens = Math.min(length - i * PAGE_TOKENS, PAGE_TOKENS);
    if (tokens < PAGE_TOKENS) clearTail(page, tokens, identity);
    yield page;
  }
}

function headerBytes(
  timeline: Timeline,
  identity: CacheIdentity,
  checksum: string,
): Uint8Array<ArrayBuffer> {
  const { type, shape: [layers, width] } = identity;
  const nPages = Math.ceil(timeline.length / PAGE_TOKENS);
  const tokenBytes = timeline.length * 4;
  const pageBytes = nPages * layers * PAGE_TOKENS * entryBytes(type, width);
  const json = JSON.stringify({
    __metadata__: {
      format: FORMAT,
      version: VERSION,
      layout: LAYOUTS[type],
      model: identity.model,
      weights: identity.weights,
      type,
      checksum,
    },
    tokens: {
      dtype: "I32",
      shape: [timeline.length],
      data_offsets: [0, tokenBytes],
    },
    pages: {
      ...pagesTensor(identity, nPages),
      data_offsets: [tokenBytes, tokenBytes + pageBytes],
    },
  });
  // Padded, so that the data is aligned for whoever maps it.
  const text = json + " ".repeat((8 - json.length % 8) % 8);
  const bytes = new Uint8Array(8 + text.length);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true);
  bytes.set(new TextEncoder().encode(text), 8);
  return bytes;
}

async function writeAll(file: Deno.FsFile, bytes: Uint8Array) {
  for (let at = 0; at < bytes.length;) {
    at += await file.write(bytes.subarray(at));
  }
}

/**
 * Writes a cache to a file, atomically: to a temporary name beside it that then takes its place,
 * so that a crash leaves an old file whole.
 */
export async function saveTimeline(
  path: string,
  timeline: Timeline,
  identity: CacheIdentity,
): Promise<void> {
  const tokens = Int32Array.from(timeline.tokens);
  const tokenBytes = new Uint8Array(tokens.buffer);
  // The checksum stands in the header, before the data: it takes a pass of its own.
  const hash = createHash("sha256").update(tokenBytes);
  for (const page of pagesOf(timeline, identity)) hash.update(page);
  const checksum = hash.digest("hex");
  const temporary = `${path}.${crypto.randomUUID()}.tmp`;
  try {
    const file = await Deno.open(temporary, { write: true, createNew: true });
    try {
      await writeAll(file, headerBytes(timeline, identity, checksum));
      await writeAll(file, tokenBytes);
      for (const page of pagesOf(timeline, identity)) {
        await writeAll(file, page);
      }
      await file.sync();
    } finally {
      file.close();
    }
    await Deno.rename(temporary, path);
  } catch (error) {
    await Deno.remove(temporary).catch(() => {});
    throw error;
  }
}

function checkIdentity(
  { path, metadata }: SafetensorsHeader,
  identity: CacheIdentity,
) {
  const expected: Record<string, string> = {
    format: FORMAT,
    version: VERSION,
    layout: LAYOUTS[identity.type],
    model: identity.model,
    weights: identity.weights,
    type: identity.type,
  };
  const names: Record<string, string> = {
    model: "the checkpoint",
    weights: "the weights' type",
    type: "the cache's type",
  };
  for (const [key, value] of Object.entries(expected)) {
    const found = metadata.get(key);
    if (found === value) continue;
    const said = found === undefined ? "nothing" : JSON.stringify(found);
    throw new CacheFileError(
      `${path}: ${names[key] ?? key} is ${said}, and must be "${value}"`,
    );
  }
}

async function readExactly(
  file: Deno.FsFile,
  bytes: Uint8Array<ArrayBuffer>,
  path: string,
) {
  for (let at = 0; at < bytes.length;) {
    const read = await file.read(bytes.subarray(at));
    if (read === null) {
      throw new CacheFileError(`${path}: truncated while it was read`);
    }
    at += read;
  }
}

async function readHeader(path: string): Promise<SafetensorsHeader> {
  try {
    return await readSafetensorsHeader(path);
  } catch (error) {
    if (!(error instanceof CheckpointError)) throw error;
    throw new CacheFileError(error.message, { cause: error });
  }
}

/** What {@link loadTimeline} checks tokens against. */
export interface CacheLimits {
  vocab_size: number;
  /** Tokens at most. */
  maximum: number;
}

/** The type that a saved cache says it has. @throws CacheFileError */
export async function savedType(path: string): Promise<CacheType> {
  const { metadata } = await readHeader(path);
  const type = metadata.get("type");
  if (
    metadata.get("format") !== FORMAT || !CACHE_TYPES.some((t) => t === type)
  ) {
    throw new CacheFileError(
      `${path}: is not a cache that was saved here; its format is ${
        metadata.get("format") ?? "missing"
      }, and must be ${FORMAT}`,
    );
  }
  return type as CacheType;
}

/**
 * Reads a saved cache into an empty timeline.
 *
 * @throws CacheFileError when the file is damaged or of another model, type or layout
 */
export async function loadTimeline(
  path: string,
  timeline: Timeline,
  identity: CacheIdentity,
  limits: CacheLimits,
): Promise<void> {
  const header = await readHeader(path);
  checkIdentity(header, identity);
  const tokens = header.tensors.get("tokens");
  const pages = header.tensors.get("pages");
  const length = tokens?.shape[0] ?? 0;
  const nPages = Math.ceil(length / PAGE_TOKENS);
  const expected = pagesTensor(identity, nPages);
  const shape = expected.shape.join();
  if (
    tokens?.dtype !== "I32" || tokens.shape.length !== 1 ||
    pages?.dtype !== expected.dtype || pages.shape.join() !== shape ||
    header.tensors.size !== 2 || pages.begin !== tokens.end
  ) {
    throw new CacheFileError(
      `${path}: the tensors are not tokens I32 [n] and pages ${expected.dtype} [${shape}]`,
    );
  }
  if (length > limits.maximum) {
    throw new CacheFileError(
      `${path}: holds ${length} tokens, and the model takes ${limits.maximum}`,
    );
  }
  const file = await Deno.open(path);
  try {
    await file.seek(tokens.begin, Deno.SeekMode.Start);
    const bytes = new Uint8Array(4 * length);
    await readExactly(file, bytes, path);
    const ids = new Int32Array(bytes.buffer);
    const wrong = ids.find((id) => id < 0 || id >= limits.vocab_size);
    if (wrong !== undefined) {
      throw new CacheFileError(
        `${path}: token ${wrong} is outside the vocabulary of ${limits.vocab_size}`,
      );
    }
    const hash = createHash("sha256").update(bytes);
    timeline.reserve(length);
    for (let i = 0; i < nPages; i++) {
      const page = new Uint8Array(timeline.pool.pageBytes);
      await readExactly(file, page, path);
      hash.update(page);
      timeline.pool.write(timeline.pages[i], page);
    }
    const checksum = hash.digest("hex");
    if (checksum !== header.metadata.get("checksum")) {
      throw new CacheFileError(
        `${path}: damaged: its checksum is ${checksum}, and must be ${
          header.metadata.get("checksum") ?? "present"
        }`,
      );
    }
    timeline.append(ids);
  } finally {
    file.close();
  }
}
