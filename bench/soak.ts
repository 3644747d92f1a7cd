/**
 * Random load for a while: resident memory must stay flat after the first minute.
 *
 * Usage: deno run -A bench/soak.ts [--minutes 20] [--model models/nano] [--workers 8]
 *
 * Ends with 1 when memory grew, or when anything is left once all is over.
 */
import { parseArgs } from "node:util";
import {
  type Cache,
  DisposedError,
  type GenerateOptions,
  type Grammar,
  loadModel,
  OutOfMemoryError,
} from "../mod.ts";

const { values } = parseArgs({
  args: Deno.args,
  options: {
    minutes: { type: "string", default: "20" },
    model: { type: "string", default: "models/nano" },
    workers: { type: "string", default: "8" },
  },
});

const pick = (below: number) => Math.floor(Math.random() * below);
const oneOf = <T>(...from: T[]): T => from[pick(from.length)];
const megabytes = (bytes: number) => (bytes / 2 ** 20).toFixed(1);

// So few pages that requests are put back for lack of them.
await using model = await loadModel(values.model, { cacheBytes: 4 << 20 });
const { vocab_size } = model.config;
const folder = await Deno.makeTempDir();
const end = performance.now() + Number(values.minutes) * 60_000;
let requests = 0, tokens = 0, cancelled = 0, refused = 0;

/** Grammars without end: compiled ones are kept, and must not be kept for ever. */
const grammar = (): Grammar =>
  oneOf<Grammar>(
    { regex: `[a-z]{1,${1 + pick(40)}}` },
    { choices: ["yes", "no", `n${pick(1000)}`] },
    { ebnf: `root ::= "(" root ")" | [0-${1 + pick(9)}]` },
    {
      json: {
        type: "object",
        properties: {
          n: { type: "integer", maximum: pick(1000), minimum: 0 },
          s: { type: "string", maxLength: pick(20) },
        },
        required: ["n", "s"],
        additionalProperties: false,
      },
    },
  );

const options = (): GenerateOptions => ({
  maxTokens: 1 + pick(80),
  temperature: pick(2),
  topK: pick(2) * 40,
  topP: oneOf(0.9, 1),
  repetitionPenalty: oneOf(1.1, 1),
  logprobs: oneOf(undefined, undefined, 2),
  stop: oneOf<string | string[] | undefined>(undefined, "e", ["th", "zzz"]),
  reusePrefix: pick(2) === 0,
  grammar: pick(4) ? undefined : grammar(),
});

/** One generation, read in one of the ways there are, and cut short now and then. */
async function generate(cache: Cache | undefined) {
  const ids = Array.from(
    { length: 1 + pick(pick(4) ? 60 : 1500) },
    () => pick(vocab_size),
  );
  const input = pick(3) ? ids : `Once upon a time ${pick(100)}`;
  const controller = new AbortController();
  const { signal } = controller;
  const generation = model.generate(input, { ...options(), cache, signal });
  const timer = pick(5) ? undefined : setTimeout(() => {
    if (cache && pick(2)) cache.dispose();
    else controller.abort();
  }, pick(50));
  if (pick(2)) {
    for await (const _ of generation) if (pick(30) === 0) break;
  }
  const result = await generation.result().finally(() => clearTimeout(timer));
  tokens += result.tokens.length;
}

/** What may be done with a cache after a call. */
async function handle(cache: Cache, id: number) {
  if (pick(2)) await model.forward([pick(vocab_size)], { cache });
  if (pick(2)) await model.score([1, 2, 3, pick(vocab_size)], { cache });
  await cache.save(`${folder}/${id}.cache`);
  using loaded = await model.loadCache(`${folder}/${id}.cache`);
  using fork = loaded.fork();
  loaded.truncate(pick(loaded.length + 1));
  await model.forward([5, 6, 7], { cache: fork });
}

async function client(id: number) {
  while (performance.now() < end) {
    requests++;
    let cache: Cache | undefined;
    try {
      if (pick(3) === 0) cache = model.createCache();
      await generate(cache);
      if (cache && pick(3) === 0) await handle(cache, id);
    } catch (error) {
      const name = error instanceof Error ? error.name : "";
      if (error instanceof OutOfMemoryError) refused++;
      else if (error instanceof DisposedError || name === "AbortError") {
        cancelled++;
      } else throw error;
    } finally {
      cache?.dispose();
    }
  }
}

const rows: { minute: number; rss: number }[] = [];
const start = performance.now();
const report = setInterval(() => {
  const { rss } = Deno.memoryUsage();
  const minute = (performance.now() - start) / 60_000;
  rows.push({ minute, rss });
  const { caches, prefixCache } = model.memory();
  console.log(
    `${minute.toFixed(1)} min: ${megabytes(rss)} MiB resident, ` +
      `${requests} requests, ${tokens} tokens, ${cancelled} cancelled, ` +
      `${refused} without memory, caches ${megabytes(caches)}, ` +
      `prefixes ${megabytes(prefixCache)} MiB`,
  );
}, 10_000);
await Promise.all(
  Array.from({ length: Number(values.workers) }, (_, i) => client(i)),
);
clearInterval(report);
await Deno.remove(folder, { recursive: true });
model.clearPrefixCache();

/** Bytes a minute, by least squares. */
function slope(of: typeof rows): number {
  const mean = (f: (row: typeof rows[0]) => number) =>
    of.reduce((sum, row) => sum + f(row), 0) / of.length;
  const minute = mean((row) => row.minute);
  const rss = mean((row) => row.rss);
  return mean((row) => (row.minute - minute) * (row.rss - rss)) /
    mean((row) => (row.minute - minute) ** 2);
}
const mean = (some: typeof rows) =>
  some.reduce((sum, { rss }) => sum + rss, 0) / Math.max(some.length, 1);
const flat = rows.filter(({ minute }) => minute >= 1);
// Two minutes' samples at each end: the garbage collector's saw-tooth is wider than one.
const early = mean(flat.slice(0, 12)), late = mean(flat.slice(-12));
const { caches, prefixCache } = model.memory();
console.log(
  `resident: ${megabytes(early)} MiB after a minute, ` +
    `${megabytes(late)} MiB at the end, ` +
    `${megabytes(slope(flat))} MiB a minute between; ` +
    `left: ${caches} bytes of caches, ${prefixCache} of prefixes, ` +
    `${model.load.running + model.load.waiting} requests`,
);
if (late > 1.05 * early || caches + prefixCache > 0) Deno.exit(1);
