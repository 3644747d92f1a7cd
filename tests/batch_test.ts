/** Many requests at once: the same tokens as alone, also when pages run out. */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import {
  type GenerateOptions,
  loadModel,
  type Model,
  OutOfMemoryError,
} from "../mod.ts";
import { openLibraries } from "./support/open_library.ts";
import { Random } from "./support/numbers.ts";

openLibraries();
const NANO = new URL("../models/nano/", import.meta.url);

Deno.test("a seed gives the same tokens alone and beside others", async () => {
  await using model = await loadModel(NANO);
  const options = { maxTokens: 40, temperature: 1, seed: 7 };
  const alone = await model.generate("Once upon a time", options).result();
  const random = new Random(3);
  const others = Array.from({ length: 20 }, (_, i) =>
    model.generate(
      Array.from(
        { length: 1 + random.integer(300) },
        () => random.integer(4096),
      ),
      { maxTokens: 1 + random.integer(60), seed: i, ignoreEos: true },
    ));
  const beside = await model.generate("Once upon a time", options).result();
  assertEquals(beside.tokens, alone.tokens);
  const other = await model.generate("Once upon a time", {
    ...options,
    seed: 8,
  }).result();
  assert(other.tokens.join() !== alone.tokens.join());
  for (const generation of others) {
    const { usage, tokens } = await generation.result();
    assertEquals(usage.completionTokens, tokens.length);
  }
  assertEquals(model.load, { running: 0, waiting: 0 });
});

Deno.test("fifty at once give the tokens of one by one", async () => {
  await using model = await loadModel(NANO, { maxBatch: 7 });
  const random = new Random(11);
  const requests = Array.from({ length: 50 }, (_, i) => {
    const length = i % 5 === 0
      ? 150 + random.integer(400)
      : 1 + random.integer(60);
    return {
      tokens: Array.from({ length }, () => random.integer(4096)),
      options: {
        maxTokens: 1 + random.integer(40),
        temperature: i % 2,
        seed: i,
        repetitionPenalty: i % 3 === 0 ? 1.2 : 1,
        reusePrefix: false,
      } satisfies GenerateOptions,
    };
  });
  const one: number[][] = [];
  for (const { tokens, options } of requests) {
    one.push((await model.generate(tokens, options).result()).tokens);
  }
  const all = await Promise.all(
    requests.map(({ tokens, options }) =>
      model.generate(tokens, options).result()
    ),
  );
  assertEquals(all.map((result) => result.tokens), one);
  assertEquals(model.memory().caches, 0);
});

Deno.test("requests that are put back for lack of pages give the same tokens", async () => {
  const random = new Random(17);
  const requests = Array.from({ length: 12 }, (_, i) => ({
    tokens: Array.from(
      { length: i % 3 === 0 ? 200 + random.integer(100) : 20 },
      () => random.integer(4096),
    ),
    options: {
      maxTokens: 60 + random.integer(80),
      temperature: 1,
      seed: i,
      ignoreEos: true,
      reusePrefix: false,
      logprobs: 0,
    } satisfies GenerateOptions,
  }));
  const run = async (model: Model) =>
    await Promise.all(
      requests.map(async ({ tokens, options }) => {
        const result = await model.generate(tokens, options).result();
        return [result.tokens, result.logprobs?.map((one) => one.logprob)];
      }),
    );
  await using roomy = await loadModel(NANO);
  const expected = await run(roomy);
  const pageBytes = 6 * 80 * 64 * 2;
  // Eight pages: one request of 300 + 140 tokens fits, two do not.
  await using tight = await loadModel(NANO, { cacheBytes: 8 * pageBytes });
  assertEquals(await run(tight), expected);
  assertEquals(tight.memory().caches, 0);
  await assertRejects(
    () => tight.generate(new Array(600).fill(5)).text(),
    OutOfMemoryError,
  );
  // Pages of a cache that the user holds are never taken.
  const cache = tight.createCache({ capacity: 300 });
  await assertRejects(
    () => tight.generate(requests[0].tokens, requests[0].options).text(),
    OutOfMemoryError,
  );
  assertThrows(() => tight.createCache({ capacity: 300 }), OutOfMemoryError);
  cache.dispose();
  await tight.generate(requests[0].tokens, requests[0].options).text();
});

Deno.test("finished prefixes are reused, and given up when pages are needed", async () => {
  await using model = await loadModel(NANO, { weights: "f32" });
  const start = model.memory();
  const random = new Random(23);
  const tokens = Array.from({ length: 300 }, () => random.integer(4096));
  const options = { maxTokens: 30, temperature: 0, ignoreEos: true };
  const first = await model.generate(tokens, options).result();
  assertEquals(first.usage.cachedTokens, 0);
  assertEquals(model.memory().caches, 0);
  assert(model.memory().prefixCache > 0);
  const again = await model.generate(tokens, options).result();
  assertEquals(again.usage.cachedTokens, 256);
  assertEquals(again.tokens, first.tokens);
  const other = [...tokens.slice(0, 130), ...tokens.slice(0, 130)];
  const third = await model.generate(other, options).result();
  assertEquals(third.usage.cachedTokens, 128);
  const off = await model.generate(tokens, { ...options, reusePrefix: false })
    .result();
  assertEquals(off.usage.cachedTokens, 0);
  model.clearPrefixCache();
  assertEquals(model.memory(), {
    ...start,
    workspace: model.memory().workspace,
  });
  const pageBytes = 6 * 80 * 64 * 4;
  await using small = await loadModel(NANO, {
    weights: "f32",
    cacheBytes: 8 * pageBytes,
  });
  await small.generate(tokens, options).text();
  await small.generate(tokens.toReversed(), options).text();
  assert(small.memory().prefixCache <= 8 * pageBytes);
  await using none = await loadModel(NANO, { prefixCacheBytes: 0 });
  await none.generate(tokens, options).text();
  assertEquals(none.memory().prefixCache, 0);
});
