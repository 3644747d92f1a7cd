/**
 * Random load for a while: resident memory must stay flat after the first minute.
 *
 * Usage: deno run -A bench/soak.ts [--minutes 20] [--model models/nano]
 */
import { parseArgs } from "node:util";
import { loadModel } from "../mod.ts";

const { values } = parseArgs({
  args: Deno.args,
  options: {
    minutes: { type: "string", default: "20" },
    model: { type: "string", default: "models/nano" },
    workers: { type: "string", default: "8" },
  },
});

const pick = (below: number) => Math.floor(Math.random() * below);
const megabytes = (bytes: number) => (bytes / 2 ** 20).toFixed(1);

await using model = await loadModel(values.model, { cacheBytes: 64 << 20 });
const { vocab_size } = model.config;
const folder = await Deno.makeTempDir();
const end = performance.now() + Number(values.minutes) * 60_000;
let requests = 0, tokens = 0, cancelled = 0;

/** One client: generations of all kinds, some cut short, some on caches that fork and are saved. */
async function client(id: number) {
  while (performance.now() < end) {
    const prompt = Array.from(
      { length: 1 + pick(pick(4) ? 60 : 1500) },
      () => pick(vocab_size),
    );
    const cache = pick(3) ? undefined : model.createCache();
    const controller = new AbortController();
    const generation = model.generate(prompt, {
      cache,
      maxTokens: 1 + pick(80),
      temperature: pick(2),
      topK: pick(2) * 40,
      topP: pick(2) ? 0.9 : 1,
      repetitionPenalty: pick(2) ? 1.1 : 1,
      logprobs: pick(4) ? undefined : 2,
      signal: controller.signal,
      reusePrefix: pick(2) === 0,
    });
    if (pick(5) === 0) setTimeout(() => controller.abort(), pick(50));
    try {
      if (pick(2)) {
        for await (const _ of generation) if (pick(30) === 0) break;
      }
      tokens += (await generation.result()).tokens.length;
    } catch (error) {
      if (!controller.signal.aborted) throw error;
      cancelled++;
    }
    requests++;
    if (cache && pick(4) === 0) {
      await cache.save(`${folder}/${id}.cache`);
      const loaded = await model.loadCache(`${folder}/${id}.cache`);
      const fork = loaded.fork();
      loaded.truncate(pick(loaded.length + 1));
      fork.dispose();
      loaded.dispose();
    }
    cache?.dispose();
  }
}

const rows: { minute: number; rss: number }[] = [];
const start = performance.now();
const report = setInterval(() => {
  const { rss } = Deno.memoryUsage();
  const minute = Math.round((performance.now() - start) / 30_000) / 2;
  rows.push({ minute, rss });
  const { caches, prefixCache } = model.memory();
  console.log(
    `${minute} min: ${megabytes(rss)} MiB resident, ${requests} requests, ` +
      `${tokens} tokens, ${cancelled} cancelled, caches ${
        megabytes(caches)
      }, ` +
      `prefixes ${megabytes(prefixCache)} MiB`,
  );
}, 30_000);
await Promise.all(
  Array.from({ length: Number(values.workers) }, (_, i) => client(i)),
);
clearInterval(report);
await Deno.remove(folder, { recursive: true });
model.clearPrefixCache();
const early = rows.filter(({ minute }) => minute >= 1).slice(0, 4);
const late = rows.slice(-4);
const mean = (some: typeof rows) =>
  some.reduce((sum, { rss }) => sum + rss, 0) / Math.max(some.length, 1);
console.log(
  `resident: ${megabytes(mean(early))} MiB after a minute, ` +
    `${
      megabytes(mean(late))
    } MiB at the end; caches left ${model.memory().caches} bytes`,
);
