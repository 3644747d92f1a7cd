/**
 * A cache that survives a restart: the first run computes a long prompt and saves its cache, later
 * runs start where it ended.
 *
 * Run: deno run --allow-read --allow-write --allow-ffi=build examples/save_cache.ts /tmp/story.cache
 *
 * Usage: save_cache.ts [FILE]   (default: story.cache in the current folder)
 */
import { loadModel } from "../mod.ts";

async function main() {
  const path = Deno.args[0] ?? "story.cache";
  const prompt = "Once upon a time there was a little girl who " +
    "lived in a house at the edge of the wood with her grandmother. ".repeat(
      20,
    ) +
    "One morning she";

  await using model = await loadModel(
    new URL("../models/nano", import.meta.url),
  );

  async function openCache() {
    try {
      return await model.loadCache(path);
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return model.createCache();
      throw error;
    }
  }

  const cache = await openCache();
  console.log(`${cache.length} tokens in ${path}`);
  const { text, usage, timings } = await model.generate(prompt, {
    cache,
    maxTokens: 20,
    temperature: 0,
  }).result();
  const { promptTokens, cachedTokens } = usage;
  console.log(
    `${promptTokens} prompt tokens, ${cachedTokens} of them held: ` +
      `first token after ${timings.prefillMs.toFixed(0)} ms`,
  );
  console.log(`… One morning she${text}`);

  cache.truncate(promptTokens);
  await cache.save(path);
  console.log(
    `saved ${cache.length} tokens, ${cache.bytesPerToken} bytes each`,
  );
}

try {
  await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  Deno.exit(1);
}
