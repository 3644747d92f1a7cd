/** What nano still knows with its cache in int8, beside bf16. docs/cpu.md has the other types. */
import { assert, assertEquals } from "@std/assert";
import { type Cache, loadModel, type LoadOptions, type Model } from "../mod.ts";
import { openLibraries } from "./support/open_library.ts";
import { kernelSets } from "./support/ops.ts";

// Before the tests: a library opened within one counts as a leak of it.
openLibraries();
const NANO = new URL("../models/nano/", import.meta.url);
const WINDOW = 1023;
// One set everywhere: what differs is the cache alone, not what AMX or CUDA round besides.
const OPTIONS: LoadOptions = kernelSets.includes("avx2")
  ? { device: "cpu", kernels: "avx2" }
  : {};

interface Questions {
  chat: { question: string; model: string }[];
}
const questions: Questions = JSON.parse(
  await Deno.readTextFile(
    new URL("./fixtures/nano/questions.json", import.meta.url),
  ),
);
const heldOut = await Deno.readTextFile(
  new URL("./fixtures/heldout.txt", import.meta.url),
);

type Type = Cache["type"];

/** How much worse than bf16 a type may be: perplexity, and answers that are the reference's. */
const LIMITS = [
  { type: "int8", perplexity: 0.001, answers: 0 },
] as const;

async function perplexity(model: Model, type: Type): Promise<number> {
  const bos = model.tokenizer.bosTokenId;
  assert(bos !== undefined);
  const ids = model.tokenizer.encode(heldOut, { addSpecialTokens: false });
  let sum = 0, count = 0;
  for (let at = 0; at + WINDOW <= ids.length; at += WINDOW) {
    using cache = model.createCache({ type });
    const window = [bos, ...ids.slice(at, at + WINDOW)];
    for (const logprob of await model.score(window, { cache })) {
      sum -= logprob;
      count++;
    }
  }
  return Math.exp(sum / count);
}

async function answer(
  model: Model,
  type: Type,
  prompt: Parameters<Model["generate"]>[0],
): Promise<string> {
  using cache = model.createCache({ type });
  return await model.generate(prompt, { cache, temperature: 0 }).text();
}

async function answers(model: Model, type: Type): Promise<number> {
  assertEquals(questions.chat.length, 100);
  const right = await Promise.all(
    questions.chat.map(async ({ question, model: expected }) => {
      const prompt = [{ role: "user" as const, content: question }];
      return (await answer(model, type, prompt)).trim() === expected.trim();
    }),
  );
  return right.filter(Boolean).length;
}

const bf16: Promise<{ perplexity: number; answers: number }> = (async () => {
  await using model = await loadModel(NANO, OPTIONS);
  return {
    perplexity: await perplexity(model, "bf16"),
    answers: await answers(model, "bf16"),
  };
})();

for (const { type, perplexity: most, answers: fewer } of LIMITS) {
  Deno.test(`perplexity with a cache of ${type} is at most ${100 * most} % above bf16's`, async () => {
    await using model = await loadModel(NANO, OPTIONS);
    const found = await perplexity(model, type);
    const expected = (await bf16).perplexity;
    const error = found / expected - 1;
    assert(error <= most, `${found} against ${expected}: ${100 * error} %`);
  });

  Deno.test(`at most ${fewer} chat answers fewer than in bf16 with a cache of ${type}`, async () => {
    await using model = await loadModel(NANO, OPTIONS);
    const found = await answers(model, type);
    const expected = (await bf16).answers;
    assert(found >= expected - fewer, `${found} against ${expected}`);
  });
}
