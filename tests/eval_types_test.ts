/** What nano still knows in the smaller weight types: perplexity, answers, needles. */
import { assert, assertEquals } from "@std/assert";
import { loadModel, type Model } from "../mod.ts";
import { openLibraries } from "./support/open_library.ts";

// Before the tests: a library opened within one counts as a leak of it.
openLibraries();
const NANO = new URL("../models/nano/", import.meta.url);
const FIXTURES = new URL("./fixtures/nano/", import.meta.url);
const WINDOW = 1023;

interface Questions {
  chat: { question: string; model: string }[];
  needle: { haystack: string; question: string; answer: string }[];
}

const { chat, needle }: Questions = JSON.parse(
  await Deno.readTextFile(new URL("questions.json", FIXTURES)),
);
const heldOut = await Deno.readTextFile(
  new URL("./fixtures/heldout.txt", import.meta.url),
);

/** Perplexity of consecutive windows, each after one BOS. */
async function perplexity(model: Model): Promise<number> {
  const { tokenizer } = model;
  const ids = tokenizer.encode(heldOut, { addSpecialTokens: false });
  const bos = tokenizer.bosTokenId;
  assert(bos !== undefined);
  const windows: number[][] = [];
  for (let at = 0; at + WINDOW <= ids.length; at += WINDOW) {
    windows.push([bos, ...ids.slice(at, at + WINDOW)]);
  }
  assertEquals(windows.length, 36);
  const scores = await Promise.all(windows.map((ids) => model.score(ids)));
  const all = scores.flatMap((window) => Array.from(window));
  return Math.exp(-all.reduce((sum, logprob) => sum + logprob) / all.length);
}

/** Chat answers that are not the reference's, and needles that are missed. */
async function mistakes(model: Model) {
  const answer = (input: Parameters<Model["generate"]>[0]) =>
    model.generate(input, { temperature: 0 }).text();
  const answers = await Promise.all(
    chat.map(({ question }) => answer([{ role: "user", content: question }])),
  );
  const found = await Promise.all(
    needle.map(({ haystack, question }) =>
      answer(`${haystack}\n\nUser: ${question}\n\nAssistant:`)
    ),
  );
  return {
    chat: answers.filter((text, i) => text.trim() !== chat[i].model.trim())
      .length,
    needles: found.filter((text, i) => !text.includes(needle[i].answer)).length,
  };
}

let exact: number | undefined;

for (
  const [weights, percent, answers] of [
    ["int8", 0.3, 1],
    ["int4", 2, 4],
    ["fp8", 0.3, 2],
  ] as const
) {
  Deno.test(`nano in ${weights}: perplexity at most ${percent} % above bf16, at most ${answers} other answers, all needles`, async () => {
    if (exact === undefined) {
      await using model = await loadModel(NANO);
      exact = await perplexity(model);
    }
    await using model = await loadModel(NANO, { weights });
    const value = await perplexity(model);
    const found = await mistakes(model);
    const loss = 100 * (value / exact - 1);
    const what = `${weights}: ${loss} %, ${JSON.stringify(found)}`;
    assert(loss <= percent && found.chat <= answers, what);
    assertEquals(found.needles, 0, what);
  });
}
