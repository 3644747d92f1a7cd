/** What nano knows: perplexity of held-out prose, its answers to questions, needles in haystacks. */
import { assert, assertEquals } from "@std/assert";
import type { Cache, Model } from "../../mod.ts";

export const NANO = new URL("../../models/nano/", import.meta.url);
const FIXTURES = new URL("../fixtures/", import.meta.url);

const questions: {
  chat: { question: string; model: string }[];
  needle: { haystack: string; question: string; answer: string }[];
} = JSON.parse(
  await Deno.readTextFile(new URL("nano/questions.json", FIXTURES)),
);
const heldOut = await Deno.readTextFile(new URL("heldout.txt", FIXTURES));

type CacheType = Cache["type"];

/** The held-out prose as tokens. */
export const heldOutTokens = (model: Model) =>
  model.tokenizer.encode(heldOut, { addSpecialTokens: false });

/** A request with a cache of its own, of a type if one is named. */
async function withCache<T>(
  model: Model,
  type: CacheType | undefined,
  use: (cache: Cache) => Promise<T>,
): Promise<T> {
  using cache = model.createCache({ type });
  return await use(cache);
}

/**
 * Perplexity over consecutive windows of `size` tokens, each after one BOS; what is left at the end
 * is not used.
 */
export async function perplexity(
  model: Model,
  { size = 1023, type }: { size?: number; type?: CacheType } = {},
): Promise<{ count: number; value: number }> {
  const bos = model.tokenizer.bosTokenId;
  assert(bos !== undefined);
  const tokens = heldOutTokens(model);
  const windows: number[][] = [];
  for (let at = 0; at + size <= tokens.length; at += size) {
    windows.push([bos, ...tokens.slice(at, at + size)]);
  }
  const scores = await Promise.all(
    windows.map((ids) =>
      withCache(model, type, (cache) => model.score(ids, { cache }))
    ),
  );
  const all = scores.flatMap((window) => Array.from(window));
  const sum = all.reduce((sum, logprob) => sum - logprob, 0);
  return { count: all.length, value: Math.exp(sum / all.length) };
}

const answer = (
  model: Model,
  type: CacheType | undefined,
  prompt: Parameters<Model["generate"]>[0],
) =>
  withCache(
    model,
    type,
    (cache) => model.generate(prompt, { cache, temperature: 0 }).text(),
  );

/** Those of 100 chat answers that are not the reference's. */
export async function otherAnswers(
  model: Model,
  type?: CacheType,
): Promise<string[]> {
  assertEquals(questions.chat.length, 100);
  const other = await Promise.all(
    questions.chat.map(async ({ question, model: expected }) => {
      const prompt = [{ role: "user" as const, content: question }];
      const text = await answer(model, type, prompt);
      return text.trim() === expected.trim()
        ? []
        : [`${question}: ${text}, and must be ${expected}`];
    }),
  );
  return other.flat();
}

/** Those of 25 needles that are not found. */
export async function missedNeedles(
  model: Model,
  type?: CacheType,
): Promise<string[]> {
  assertEquals(questions.needle.length, 25);
  const missed = await Promise.all(
    questions.needle.map(async ({ haystack, question, answer: needle }, i) => {
      const prompt = `${haystack}\n\nUser: ${question}\n\nAssistant:`;
      const text = await answer(model, type, prompt);
      return text.includes(needle) ? [] : [`needle ${i}: ${text}`];
    }),
  );
  return missed.flat();
}

/** Perplexity and the answers that are not the reference's. */
export interface Knowledge {
  perplexity: number;
  other: string[];
}

export async function knowledge(
  model: Model,
  type?: CacheType,
): Promise<Knowledge> {
  return {
    perplexity: (await perplexity(model, { type })).value,
    other: await otherAnswers(model, type),
  };
}

/**
 * Holds a type to its limits beside bf16: perplexity in percent, answers fewer, needles missed (none
 * unless said).
 * `type`: of the cache, where that is what differs.
 */
export async function assertKnows(
  model: Model,
  exact: Knowledge,
  limits: { percent: number; fewer: number; needles?: number },
  type?: CacheType,
) {
  const found = await knowledge(model, type);
  const loss = 100 * (found.perplexity / exact.perplexity - 1);
  const { name, kernels } = model.inspect().device.info();
  const where = `${name}, ${kernels}`;
  assert(
    loss <= limits.percent,
    `perplexity ${found.perplexity} against ${exact.perplexity}: ${loss} % (${where})`,
  );
  assert(
    found.other.length <= exact.other.length + limits.fewer,
    found.other.join("\n"),
  );
  const missed = await missedNeedles(model, type);
  assert(missed.length <= (limits.needles ?? 0), missed.join("\n"));
}
