/**
 * Caches that hold a context without its having been computed: speed does not depend on the values.
 *
 * @module
 */
import { PAGE_TOKENS } from "../ffi/mod.ts";
import type { Cache, Model } from "../mod.ts";
import { elementBytes, scaleBytes } from "../src/cache/type.ts";
import { randomTokens } from "./source.ts";

/** A page of numbers of the order of 1, as moela_pool_desc lays it out. */
function randomPage({ type }: Cache, layers: number, width: number) {
  const elements = PAGE_TOKENS * elementBytes(type, width);
  const scales = PAGE_TOKENS * scaleBytes(type);
  const page = new Uint8Array(layers * (elements + scales));
  const random = randomTokens(elements, 256, 1);
  const layer = Uint8Array.from(random, (byte, i) => {
    if (type === "f32") return i % 4 === 3 ? 0x3f - (byte & 128) : byte & 127;
    if (type === "bf16") return i % 2 === 1 ? 0x3e : byte;
    // E4M3 of at most 240.
    return type === "fp8" ? byte & 0xf7 : byte;
  });
  for (let i = 0; i < layers; i++) {
    const at = i * (elements + scales);
    page.set(layer, at);
    // 2^-8: bytes of up to 240 become numbers up to 1.
    page.fill(8 * 16, at + elements, at + elements + scales);
  }
  return page;
}

/** A cache of `tokens` random tokens with random latents. */
export function filledCache(
  model: Model,
  type: Cache["type"] | undefined,
  tokens: number,
): Cache {
  const { num_hidden_layers, kv_lora_rank, qk_rope_head_dim, vocab_size } =
    model.config;
  const cache = model.createCache({ type });
  if (tokens === 0) return cache;
  const { timeline, release } = cache.acquire(
    "fill a cache",
    () => Promise.resolve(),
  );
  try {
    timeline.reserve(tokens);
    const width = kv_lora_rank + qk_rope_head_dim;
    const page = randomPage(cache, num_hidden_layers, width);
    for (const id of timeline.pages) timeline.pool.write(id, page);
    timeline.append(randomTokens(tokens, vocab_size, 2));
  } finally {
    release();
  }
  return cache;
}
