/** What nano knows: perplexity of held-out prose, its answers to questions, needles in haystacks. */
import { assert, assertEquals } from "@std/assert";
import { loadModel, type LoadOptions, type Model } from "../mod.ts";
import { openLibraries } from "./support/open_library.ts";

// Before the tests: a library opened within one counts as a leak of it.
openLibraries();
const NANO = new URL("../models/nano/", import.meta.url);
const FIXTURES = new URL("./fixtures/nano/", import.meta.url);

interface Perplexity {
  tokens: number;
  first_ids: number[];
  windows: Record<string, { count: number; perplexity: number }>;
}
interface Questions {
  chat: { question: string; model: string }[];
  needle: { haystack: string; question: string; answer: string }[];
}

const readJson = async (name: string) =>
  JSON.parse(await Deno.readTextFile(new URL(name, FIXTURES)));
const reference: Perplexity = (await readJson("nano.json")).perplexity;
const questions: Questions = await readJson("questions.json");
const heldOut = await Deno.readTextFile(
  new URL("./fixtures/heldout.txt", import.meta.url),
);

/** Consecutive windows of `size` tokens, each after one BOS; what is left at the end is not used. */
async function perplexity(
  model: Model,
  tokens: readonly number[],
  size: number,
): Promise<{ count: number; value: number }> {
  const bos = model.tokenizer.bosTokenId;
  assert(bos !== undefined);
  const windows: number[][] = [];
  for (let at = 0; at + size <= tokens.length; at += size) {
    windows.push([bos, ...tokens.slice(at, at + size)]);
  }
  const scores = await Promise.all(windows.map((ids) => model.score(ids)));
  let sum = 0, count = 0;
  for (const window of scores) {
    count += window.length;
    for (const logprob of window) sum -= logprob;
  }
  return { count, value: Math.exp(sum / count) };
}

function testPerplexity(weights: LoadOptions["weights"], tolerance: number) {
  const type = weights === "auto" ? "bf16 as stored" : weights;
  for (const [size, expected] of Object.entries(reference.windows)) {
    Deno.test(`perplexity of held-out prose in ${type}, windows of ${size}`, async () => {
      await using model = await loadModel(NANO, { weights });
      const tokens = model.tokenizer.encode(heldOut, {
        addSpecialTokens: false,
      });
      assertEquals(tokens.length, reference.tokens);
      const { first_ids } = reference;
      assertEquals(tokens.slice(0, first_ids.length), first_ids);
      const { count, value } = await perplexity(model, tokens, Number(size));
      assertEquals(count, expected.count);
      const error = Math.abs(value / expected.perplexity - 1);
      assert(
        error <= tolerance,
        `${value} against ${expected.perplexity}: off by ${100 * error} %`,
      );
    });
  }
}

testPerplexity("auto", 0.003);
testPerplexity("f32", 0.0001);

Deno.test("at least 98 of 100 chat answers on nano in bf16 are the reference's", async () => {
  await using model = await loadModel(NANO);
  assertEquals(questions.chat.length, 100);
  const answers = await Promise.all(
    questions.chat.map(({ question }) =>
      model.generate([{ role: "user", content: question }], { temperature: 0 })
        .text()
    ),
  );
  const other = questions.chat.flatMap(({ question, model }, i) =>
    answers[i].trim() === model.trim() ? [] : [{
      question,
      expected: model,
      found: answers[i],
    }]
  );
  assert(other.length <= 2, JSON.stringify(other));
});

Deno.test("all 25 needles are found on nano in bf16", async () => {
  await using model = await loadModel(NANO);
  assertEquals(questions.needle.length, 25);
  const missed = await Promise.all(
    questions.needle.map(async ({ haystack, question, answer }, i) => {
      const prompt = `${haystack}\n\nUser: ${question}\n\nAssistant:`;
      const text = await model.generate(prompt, { temperature: 0 }).text();
      return text.includes(answer) ? [] : [`needle ${i}: ${text}`];
    }),
  );
  assertEquals(missed.flat(), []);
});
