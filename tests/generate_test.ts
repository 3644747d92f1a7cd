/** `generate()` on nano: goldens, options, streaming, cancellation, caches. */
import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertRejects,
  assertThrows,
} from "@std/assert";
import {
  CacheBusyError,
  type Chunk,
  DisposedError,
  type GenerateOptions,
  loadModel,
  type Model,
  OutOfMemoryError,
} from "../mod.ts";
import { openLibrary } from "../ffi/mod.ts";
import { Random, relativeError } from "./support/numbers.ts";
import { floats, integers, readSafetensors } from "./support/safetensors.ts";

openLibrary();
const NANO = new URL("../models/nano/", import.meta.url);
const FIXTURES = new URL("./fixtures/nano/", import.meta.url);
const { prompts } = JSON.parse(
  await Deno.readTextFile(new URL("nano.json", FIXTURES)),
) as { prompts: Record<string, { text: string; greedy_text: string }> };
const golden = await readSafetensors(new URL("nano.safetensors", FIXTURES));

/** Feeds the golden's own tokens, so that one close call does not hide what follows. */
async function checkGreedy(model: Model, name: string, margin: number) {
  const ids = Array.from(integers(golden, `${name}.ids`));
  const greedy = Array.from(integers(golden, `${name}.greedy`));
  const margins = floats(golden, `${name}.greedy_margin`);
  const cache = model.createCache();
  let logits = await model.forward(ids, { cache });
  let compared = 0;
  for (let i = 0; i < greedy.length; i++) {
    const best = logits.reduce((a, x, id) => x > logits[a] ? id : a, 0);
    if (margins[i] > margin) {
      assertEquals(best, greedy[i], `${name}: token ${i}`);
      compared++;
    }
    logits = await model.forward([greedy[i]], { cache });
  }
  assert(compared > 0);
  cache.dispose();
}

Deno.test("greedy tokens on nano are the reference's in f32", async () => {
  await using model = await loadModel(NANO, { weights: "f32" });
  for (const name of Object.keys(prompts)) {
    await checkGreedy(model, name, 1e-3);
    const ids = Array.from(integers(golden, `${name}.ids`));
    const logits = await model.forward(ids);
    const error = relativeError(logits, floats(golden, `${name}.last_logits`));
    assert(error < 1e-5, `${name}: last logits are off by ${error}`);
    const scores = await model.score(ids);
    const expected = floats(golden, `${name}.logprobs`);
    scores.forEach((x, i) =>
      assert(Math.abs(x - expected[i]) < 1e-4, `${name}: logprob ${i}`)
    );
  }
});

Deno.test("greedy tokens on nano are the reference's in bf16", async () => {
  await using model = await loadModel(NANO);
  for (const name of Object.keys(prompts)) {
    await checkGreedy(model, name, 0.1);
  }
});

Deno.test("generate() writes what the reference writes", async () => {
  await using model = await loadModel(NANO, { weights: "f32" });
  for (const [name, { greedy_text }] of Object.entries(prompts)) {
    const ids = Array.from(integers(golden, `${name}.ids`));
    const greedy = Array.from(integers(golden, `${name}.greedy`));
    const result = await model.generate(ids, {
      temperature: 0,
      maxTokens: greedy.length,
    }).result();
    assertEquals(result.tokens, greedy, name);
    assertEquals(result.text, greedy_text, name);
    assertEquals(
      result.finishReason,
      greedy[greedy.length - 1] === 1 ? "stop" : "length",
    );
    assertEquals(result.usage.promptTokens, ids.length);
    assertEquals(result.usage.completionTokens, greedy.length);
  }
});

Deno.test("chunks concatenate to the result", async () => {
  await using model = await loadModel(NANO);
  for (const seed of [1, 2, 3]) {
    const generation = model.generate("naïve — 你好, 🦊", {
      maxTokens: 60,
      temperature: 1.3,
      topP: 1,
      seed,
      logprobs: 3,
    });
    const chunks: Chunk[] = [];
    for await (const chunk of generation) chunks.push(chunk);
    const result = await generation.result();
    assertEquals(chunks.map((chunk) => chunk.text).join(""), result.text);
    assertEquals(chunks.flatMap((chunk) => chunk.tokens), result.tokens);
    assertEquals(
      chunks.flatMap((chunk) => chunk.logprobs ?? []),
      result.logprobs,
    );
    assertEquals(result.logprobs?.length, result.tokens.length);
    for (const { top, logprob } of result.logprobs ?? []) {
      assertEquals(top.length, 3);
      assert(logprob <= top[0].logprob && top[0].logprob <= 0);
    }
    assertEquals(result.seed, seed);
  }
});

Deno.test("logprobs are the log-softmax of the raw logits", async () => {
  await using model = await loadModel(NANO, { weights: "f32" });
  const ids = Array.from(integers(golden, "story.ids"));
  const { tokens, logprobs } = await model.generate(ids, {
    maxTokens: 12,
    temperature: 0.8,
    seed: 5,
    logprobs: 0,
    logitBias: { 42: 3 },
  }).result();
  const scores = await model.score([...ids, ...tokens]);
  logprobs?.forEach(({ logprob, top }, i) => {
    assertEquals(top, []);
    const expected = scores[ids.length - 1 + i];
    assert(Math.abs(logprob - expected) < 1e-4, `token ${i}`);
  });
});

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

Deno.test("many at once give the tokens of one by one", async () => {
  await using model = await loadModel(NANO, { maxBatch: 7 });
  const random = new Random(11);
  const requests = Array.from({ length: 30 }, (_, i) => {
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

Deno.test("stop strings end the text and are not shown", async () => {
  await using model = await loadModel(NANO, { weights: "f32" });
  const whole = prompts.story.greedy_text;
  for (const stop of ["daughter", "so pretty", ", and", "retty th"]) {
    const result = await model.generate(prompts.story.text, {
      temperature: 0,
      maxTokens: 48,
      stop: [stop, "never there"],
    }).result();
    assertEquals(result.finishReason, "stop");
    assertEquals(result.text, whole.slice(0, whole.indexOf(stop)));
    const text = model.tokenizer.decode(result.tokens);
    assert(text.includes(stop), "the stop string's tokens are kept");
  }
});

Deno.test("stopTokens, minTokens and ignoreEos act as documented", async () => {
  await using model = await loadModel(NANO, { weights: "f32" });
  const chat = prompts["chat-add"].text;
  const eos = await model.generate(chat, { temperature: 0, maxTokens: 20 })
    .result();
  assertEquals(eos.finishReason, "stop");
  assertEquals(eos.tokens[eos.tokens.length - 1], 1);
  assertEquals(eos.text, " 42");
  const longer = await model.generate(chat, {
    temperature: 0,
    maxTokens: 20,
    minTokens: 10,
  }).result();
  assert(longer.tokens.length >= 10 && !longer.tokens.slice(0, 10).includes(1));
  const ignored = await model.generate(chat, {
    temperature: 0,
    maxTokens: 20,
    ignoreEos: true,
  }).result();
  assertEquals(ignored.tokens.length, 20);
  const stopped = await model.generate(chat, {
    temperature: 0,
    maxTokens: 20,
    stopTokens: [eos.tokens[0]],
  }).result();
  assertEquals(stopped.tokens, eos.tokens.slice(0, 1));
  assertEquals(stopped.text, "");
});

Deno.test("a cache keeps the common prefix, the prompt and the answer", async () => {
  await using model = await loadModel(NANO, { weights: "f32" });
  const cache = model.createCache();
  const first = await model.generate([0, 5, 6, 7], { cache, maxTokens: 6 })
    .result();
  assertEquals(cache.tokens, [0, 5, 6, 7, ...first.tokens]);
  assertEquals(first.usage.cachedTokens, 0);
  const second = await model.generate([0, 5, 6, 9, 10], { cache, maxTokens: 3 })
    .result();
  assertEquals(second.usage.cachedTokens, 3);
  assertEquals(cache.tokens, [0, 5, 6, 9, 10, ...second.tokens]);
  const held = cache.tokens;
  const third = await model.generate(held, { cache, maxTokens: 0 }).result();
  assertEquals(third.usage.cachedTokens, held.length - 1);
  assertEquals(third.tokens, []);
  assertEquals(third.finishReason, "length");
  assertEquals(cache.tokens, held);
  const fork = cache.fork();
  cache.truncate(2);
  assertEquals([cache.length, fork.tokens], [2, held]);
  const a = await model.forward([11, 12], { cache: fork });
  const b = await model.forward([...held, 11, 12]);
  assert(relativeError(a, b) < 1e-5);
  fork.dispose();
  cache.dispose();
  assertEquals(model.memory().caches, 0);
});

Deno.test("forks write to pages of their own", async () => {
  await using model = await loadModel(NANO, { weights: "f32" });
  const random = new Random(5);
  const tokens = Array.from({ length: 200 }, () => random.integer(4096));
  const cache = model.createCache();
  await model.forward(tokens, { cache });
  const before = model.memory().caches;
  const forks = [cache.fork(), cache.fork(), cache.fork()];
  assertEquals(model.memory().caches, before, "a fork copies nothing");
  // The original starts again from token 10; the forks go on from theirs.
  cache.truncate(10);
  await model.forward(tokens.slice(20), { cache });
  for (const [i, fork] of forks.entries()) {
    const logits = await model.forward([i, 9], { cache: fork });
    const expected = await model.forward([...tokens, i, 9]);
    assert(relativeError(logits, expected) < 1e-5, `fork ${i}`);
  }
});

Deno.test("break and return() stop, and keep what was produced", async () => {
  await using model = await loadModel(NANO);
  const cache = model.createCache();
  const generation = model.generate("Once upon a time", {
    cache,
    ignoreEos: true,
    maxTokens: 5000,
  });
  let seen = "";
  for await (const chunk of generation) {
    seen += chunk.text;
    if (seen.length > 30) break;
  }
  const result = await generation.result();
  assertEquals(result.finishReason, "abort");
  assert(result.text.startsWith(seen) && result.tokens.length < 5000);
  const prompt = model.tokenizer.encode("Once upon a time");
  const all = [...prompt, ...result.tokens];
  assertEquals(cache.tokens, all.slice(0, cache.length));
  assert(cache.length >= prompt.length);
  const early = model.generate("Once", { cache, maxTokens: 5000 });
  await early.return();
  assertEquals((await early.result()).finishReason, "abort");
  assertEquals(await early.next(), { done: true, value: undefined });
  assertEquals(cache.length <= 5000, true);
});

Deno.test("a signal aborts before, during prefill and during decode", async () => {
  await using model = await loadModel(NANO);
  const reason = new Error("enough");
  const before = model.generate("a", { signal: AbortSignal.abort(reason) });
  assertEquals(await assertRejects(() => before.text()), reason);
  const cache = model.createCache();
  const prefill = new AbortController();
  const long = Array.from({ length: 6000 }, (_, i) => i % 4096);
  const slow = model.generate(long, { cache, signal: prefill.signal });
  setTimeout(() => prefill.abort(reason), 30);
  assertEquals(await assertRejects(() => slow.result()), reason);
  assertEquals(cache.tokens, long.slice(0, cache.length));
  const decode = new AbortController();
  const generation = model.generate("Once", {
    cache,
    signal: decode.signal,
    ignoreEos: true,
  });
  let chunks = 0;
  const error = await assertRejects(async () => {
    for await (const _ of generation) if (++chunks === 5) decode.abort(reason);
  });
  assertEquals(error, reason);
  assert(chunks >= 5);
  // The cache is free again.
  await model.forward([1], { cache });
});

Deno.test("a cache serves one call at a time", async () => {
  await using model = await loadModel(NANO);
  const cache = model.createCache();
  const running = model.generate("Once", { cache, maxTokens: 50 });
  assertThrows(() => model.generate("x", { cache }), CacheBusyError);
  await assertRejects(() => model.forward([1], { cache }), CacheBusyError);
  assertThrows(() => cache.fork(), CacheBusyError);
  assertThrows(() => cache.truncate(0), CacheBusyError);
  assert(cache.length >= 0);
  await running.result();
  cache.fork();
});

Deno.test("dispose() rejects what runs and frees the memory", async () => {
  const model = await loadModel(NANO);
  const generation = model.generate("Once", { ignoreEos: true });
  const cache = model.createCache();
  const other = model.generate("Twice", { cache, ignoreEos: true });
  const finished = await model.generate("a", { maxTokens: 2 }).result();
  cache.dispose();
  await assertRejects(() => other.text(), DisposedError);
  model.dispose();
  model.dispose();
  await assertRejects(() => generation.text(), DisposedError);
  await model[Symbol.asyncDispose]();
  assertThrows(() => model.generate("x"), DisposedError);
  assertThrows(() => model.createCache(), DisposedError);
  assertThrows(() => cache.length, DisposedError);
  await assertRejects(() => model.forward([1]), DisposedError);
  assertEquals(finished.tokens.length, 2);
});

Deno.test("generate() throws at the call for bad arguments", async () => {
  await using model = await loadModel(NANO);
  const bad = (
    input: unknown,
    options: unknown,
    type: typeof TypeError | typeof RangeError,
    message: string,
  ) =>
    assertThrows(
      () => model.generate(input as string, options as GenerateOptions),
      type,
      message,
    );
  bad([], {}, RangeError, "tokens is empty");
  bad([4096], {}, RangeError, "token id 4096");
  bad([1.5], {}, RangeError, "1.5");
  bad(["a"], {}, TypeError, "token id");
  bad(null, {}, TypeError, "null");
  bad("a", { topP: 1.5 }, RangeError, "topP is 1.5, and must be in (0, 1]");
  bad("a", { topP: "1" }, TypeError, "topP");
  bad("a", { maxTokens: -1 }, RangeError, "maxTokens is -1");
  bad("a", { temperature: NaN }, RangeError, "temperature");
  bad("a", { temperature: null }, TypeError, "temperature is null");
  bad("a", { seed: 2 ** 53 }, RangeError, "seed");
  bad("a", { stop: [""] }, RangeError, "stop[0]");
  bad("a", { stopTokens: [9999] }, RangeError, "stopTokens[0]");
  bad("a", { logitBias: { x: 1 } }, RangeError, "logitBias");
  bad("a", { tempurature: 1 }, TypeError, "tempurature is not an option");
  bad("a", { cache: {} }, TypeError, "createCache");
  bad(new Array(8193).fill(5), {}, RangeError, "8193");
  model.generate("a", { topP: undefined, maxTokens: 1 });
});

Deno.test("text(), json() and iteration end as documented", async () => {
  await using model = await loadModel(NANO, { weights: "f32" });
  const prompt = prompts["chat-json"].text;
  const json = await model.generate(prompt, { temperature: 0 }).json();
  assertEquals(json, { name: "Rose", age: 7, likes: "kettle" });
  const cut = model.generate(prompt, { temperature: 0, maxTokens: 4 });
  await assertRejects(() => cut.json(), SyntaxError, "length");
  const generation = model.generate("a", { maxTokens: 3 });
  for await (const _ of generation) { /* all of it */ }
  assertThrows(() => generation[Symbol.asyncIterator](), TypeError);
  assertEquals(typeof await generation.text(), "string");
  assertEquals("then" in generation, false);
});

Deno.test("a conversation pays only for what is new", async () => {
  await using model = await loadModel(NANO, { weights: "f32" });
  const cache = model.createCache();
  const messages = [{ role: "user", content: "What is 12 + 30?" }];
  const first = await model.generate(messages, { cache, temperature: 0 })
    .result();
  assertEquals(first.message, { role: "assistant", content: "42" });
  messages.push(first.message as { role: string; content: string });
  messages.push({ role: "user", content: "What is 73 - 43?" });
  const held = cache.length;
  const second = await model.generate(messages, { cache, temperature: 0 })
    .result();
  assertEquals(second.message.content, "30");
  assertEquals(second.usage.cachedTokens, held);
});

Deno.test("a checkpoint without a tokenizer works on ids", async () => {
  const folder = new URL("./fixtures/checkpoints/tiny-v2/", import.meta.url);
  await using model = await loadModel(folder);
  const generation = model.generate([1, 2, 3], { maxTokens: 4 });
  assertEquals((await generation.result()).tokens.length, 4);
  await assertRejects(() => generation.text(), TypeError, "tokenizer");
  assertThrows(() => model.generate("text"), TypeError, "tokenizer");
  assertInstanceOf(model, Object);
});
