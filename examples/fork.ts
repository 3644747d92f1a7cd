/**
 * Several continuations of one prompt: it is computed once, then the cache forks.
 *
 * Run: deno run --allow-read --allow-ffi=build examples/fork.ts
 *
 * Usage: fork.ts [--count N] [--tokens N] [--temperature T] [PROMPT]
 */
import { parseArgs } from "node:util";
import { loadModel } from "../mod.ts";

async function main() {
  const { values, positionals } = parseArgs({
    args: Deno.args,
    allowPositionals: true,
    options: {
      count: { type: "string", default: "3" },
      tokens: { type: "string", default: "40" },
      temperature: { type: "string", default: "0.9" },
    },
  });
  const prompt = positionals.join(" ") || "The old fox looked at the moon and";

  await using model = await loadModel(
    new URL("../models/nano", import.meta.url),
  );
  const cache = model.createCache();
  await model.generate(prompt, { cache, maxTokens: 0 }).result();

  // A fork copies nothing: all share the prompt's pages until one of them writes.
  const continuations = Array.from(
    { length: Number(values.count) },
    (_, seed) =>
      model.generate(prompt, {
        cache: cache.fork(),
        seed,
        maxTokens: Number(values.tokens),
        temperature: Number(values.temperature),
      }).result(),
  );

  for (const { text, usage, seed } of await Promise.all(continuations)) {
    const { cachedTokens, promptTokens } = usage;
    console.log(`seed ${seed}: ${prompt}${text}`);
    console.log(`  (${cachedTokens} of ${promptTokens} prompt tokens reused)`);
  }
}

try {
  await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  Deno.exit(1);
}
