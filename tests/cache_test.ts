/** Caches under `generate()` and `forward()`, and what stops a call that uses one. */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { CacheBusyError, DisposedError, loadModel } from "../mod.ts";
import { openLibraries } from "./support/open_library.ts";
import { Random, relativeError } from "./support/numbers.ts";
import { slender } from "./support/slender.ts";

openLibraries();
const NANO = new URL("../models/nano/", import.meta.url);

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

Deno.test("a token takes the latent and the rotary key of each layer, no more", async () => {
  for (
    const [name, bytes] of [["v2-lite", 31_104], ["v2", 69_120]] as const
  ) {
    await using model = await slender(name);
    const cache = model.createCache({ capacity: 128 });
    assertEquals(cache.type, "bf16");
    assertEquals(cache.bytesPerToken, bytes);
    assertEquals(cache.bytes, 128 * bytes);
    assertEquals(model.createCache({ type: "f32" }).bytesPerToken, 2 * bytes);
    await model.forward([5, 6, 7], { cache });
    assertEquals(model.memory().caches, 128 * bytes);
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
  // A GPU is done with the whole prompt in less than the time that a processor needs for a step.
  const { kind } = model.inspect().device.library;
  setTimeout(() => prefill.abort(reason), kind === "cuda" ? 1 : 30);
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
