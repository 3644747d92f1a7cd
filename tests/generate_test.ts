/** `generate()` on nano: goldens, options, streaming, cancellation, caches. */
import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { type Chunk, loadModel, type Model } from "../mod.ts";
import { checkpointFolder } from "./support/fixtures.ts";
import { openLibraries } from "./support/open_library.ts";
import { relativeError } from "./support/numbers.ts";
import { floats, integers, readSafetensors } from "./support/safetensors.ts";

openLibraries();
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
  const folder = checkpointFolder("tiny-v2");
  await using model = await loadModel(folder);
  const generation = model.generate([1, 2, 3], { maxTokens: 4 });
  assertEquals((await generation.result()).tokens.length, 4);
  await assertRejects(() => generation.text(), TypeError, "tokenizer");
  assertThrows(() => model.generate("text"), TypeError, "tokenizer");
  assertInstanceOf(model, Object);
});
