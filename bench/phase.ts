/**
 * What is measured of a model, and how long it takes.
 *
 * @module
 */
import type { CacheType, Model } from "../mod.ts";
import { filledCache } from "./fill.ts";
import { randomTokens } from "./source.ts";

/** One thing that is measured. */
export interface Phase {
  phase: "decode" | "prefill";
  /** Tokens of the clock, of each request. */
  tokens: number;
  /** Tokens that are there before. */
  context: number;
  /** Requests at once. */
  batch: number;
}

/** Milliseconds that a phase takes once. Each run has tokens of its own. */
export async function measure(
  model: Model,
  type: CacheType | undefined,
  { phase, tokens, context, batch }: Phase,
  run: number,
): Promise<number> {
  const { vocab_size } = model.config;
  if (phase === "prefill") {
    using cache = model.createCache({ type });
    const ids = randomTokens(tokens, vocab_size, run);
    const started = performance.now();
    await model.forward(ids, { cache });
    return performance.now() - started;
  }
  const caches = Array.from(
    { length: batch },
    () => filledCache(model, type, context),
  );
  const times = await Promise.all(caches.map(async (cache, i) => {
    const [next] = randomTokens(1, vocab_size, run * 100 + i);
    // The first token comes from the prompt's last row: the clock starts with it.
    const { timings } = await model.generate([...cache.tokens, next], {
      cache,
      maxTokens: tokens + 1,
      temperature: 0,
      ignoreEos: true,
    }).result();
    return timings.decodeMs;
  }));
  for (const cache of caches) cache.dispose();
  return Math.max(...times);
}
