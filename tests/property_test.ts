/**
 * Random sequences of calls over many caches against a naive model that recomputes everything:
 * logits bit by bit without the prefix cache, also when requests are put back for lack of pages.
 */
import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { type Cache, loadModel, type Model } from "../mod.ts";
import { checkpointFolder } from "./support/fixtures.ts";
import { openLibraries } from "./support/open_library.ts";
import { assertSameBits } from "./support/ops.ts";
import { inFolder } from "./support/folder.ts";

openLibraries();
const TINY = checkpointFolder("tiny-v2");
const VOCAB = 320;

/** Tokens computed in one call, which chose their path, and how many of them are still held. */
interface Call {
  tokens: number[];
  kept: number;
}

/** A cache, and the calls that filled it. */
interface Held {
  cache: Cache;
  calls: Call[];
}

const call = (tokens: number[]): Call => ({ tokens, kept: tokens.length });
const heldTokens = (calls: readonly Call[]) =>
  calls.flatMap(({ tokens, kept }) => tokens.slice(0, kept));

type Action =
  | { kind: "create"; capacity?: number }
  | { kind: "append"; cache: number; tokens: number[] }
  | { kind: "fork"; cache: number }
  | { kind: "truncate"; cache: number; keep: number }
  | { kind: "generate"; cache: number; tokens: number[]; keep: number }
  | { kind: "beside"; tokens: number[]; count: number }
  | { kind: "abort"; cache: number; tokens: number[] }
  | { kind: "reload"; cache: number }
  | { kind: "dispose"; cache: number };

const index = fc.nat({ max: 7 });
const token = fc.nat({ max: VOCAB - 1 });
const few = fc.array(token, { minLength: 1, maxLength: 70 });
const many = fc.array(token, { minLength: 128, maxLength: 200 });
const some = fc.oneof({ weight: 4, arbitrary: few }, {
  weight: 1,
  arbitrary: many,
});
const share = fc.nat({ max: 100 });

const action: fc.Arbitrary<Action> = fc.oneof(
  fc.record({
    kind: fc.constant("create" as const),
    capacity: fc.option(fc.integer({ min: 1, max: 64 }), { nil: undefined }),
  }),
  fc.record({
    kind: fc.constant("append" as const),
    cache: index,
    tokens: some,
  }),
  fc.record({ kind: fc.constant("fork" as const), cache: index }),
  fc.record({
    kind: fc.constant("truncate" as const),
    cache: index,
    keep: share,
  }),
  fc.record({
    kind: fc.constant("generate" as const),
    cache: index,
    tokens: few,
    keep: share,
  }),
  fc.record({
    kind: fc.constant("beside" as const),
    tokens: some,
    count: fc.integer({ min: 1, max: 5 }),
  }),
  fc.record({
    kind: fc.constant("abort" as const),
    cache: index,
    tokens: many,
  }),
  fc.record({ kind: fc.constant("reload" as const), cache: index }),
  fc.record({ kind: fc.constant("dispose" as const), cache: index }),
);

/** Logits after `calls` and one more of `next`, from nothing. */
async function recompute(
  naive: Model,
  calls: readonly Call[],
  next: readonly number[],
): Promise<Float32Array<ArrayBuffer>> {
  const cache = naive.createCache();
  for (const { tokens, kept } of calls) {
    const before = cache.length;
    await naive.forward(tokens, { cache });
    cache.truncate(before + kept);
  }
  const logits = await naive.forward(next, { cache });
  cache.dispose();
  return new Float32Array(logits);
}

/** The calls that leave the first `length` tokens as they were computed. */
function cut(calls: readonly Call[], length: number): Call[] {
  const left: Call[] = [];
  for (const { tokens, kept } of calls) {
    if (length === 0) break;
    left.push({ tokens, kept: Math.min(kept, length) });
    length -= left[left.length - 1].kept;
  }
  return left;
}

class Checker {
  readonly held: Held[] = [];

  constructor(
    readonly model: Model,
    readonly naive: Model,
    readonly folder: string,
  ) {}

  pick(i: number): Held | undefined {
    return this.held[i % Math.max(this.held.length, 1)];
  }

  async check({ cache, calls }: Held) {
    assertEquals(cache.tokens, heldTokens(calls));
    const fork = cache.fork();
    const logits = await this.model.forward([7], { cache: fork });
    fork.dispose();
    const expected = await recompute(this.naive, calls, [7]);
    assertSameBits(new Float32Array(logits), expected, "logits");
  }

  async run(action: Action) {
    if (action.kind === "create") {
      if (this.held.length >= 6) return;
      const { capacity } = action;
      this.held.push({
        cache: this.model.createCache({ capacity }),
        calls: [],
      });
      return;
    }
    if (action.kind === "beside") {
      return await this.beside(action.tokens, action.count);
    }
    const held = this.pick(action.cache);
    if (!held) return;
    const { cache } = held;
    switch (action.kind) {
      case "append": {
        if (cache.length + action.tokens.length > cache.capacity) return;
        const logits = await this.model.forward(action.tokens, { cache });
        const expected = await recompute(
          this.naive,
          held.calls,
          action.tokens,
        );
        assertSameBits(new Float32Array(logits), expected, "append");
        held.calls.push(call(action.tokens));
        break;
      }
      case "fork":
        if (this.held.length >= 6) return;
        this.held.push({ cache: cache.fork(), calls: held.calls.slice() });
        break;
      case "truncate": {
        const length = Math.floor(cache.length * action.keep / 100);
        cache.truncate(length);
        held.calls = cut(held.calls, length);
        break;
      }
      case "generate": {
        const kept = cache.tokens.slice(
          0,
          Math.floor(cache.length * action.keep / 100),
        );
        const prompt = [...kept, ...action.tokens];
        const room = cache.capacity - prompt.length;
        if (room < 4) return;
        const before = held.calls;
        const { tokens, usage } = await this.model.generate(prompt, {
          cache,
          maxTokens: 4,
          temperature: 1,
          seed: prompt.length,
          ignoreEos: true,
        }).result();
        const fed = prompt.slice(usage.cachedTokens);
        held.calls = [
          ...cut(before, usage.cachedTokens),
          call(fed),
          ...tokens.map((id) => call([id])),
        ];
        assertEquals(tokens.length, 4);
        break;
      }
      case "abort": {
        const room = cache.capacity - cache.length;
        if (room < action.tokens.length) return;
        const before = cache.tokens;
        const controller = new AbortController();
        const pending = this.model.forward(action.tokens, {
          cache,
          signal: controller.signal,
        });
        setTimeout(() => controller.abort(), action.tokens.length % 3);
        await pending.catch(() => {});
        const asked = [...before, ...action.tokens];
        assertEquals(cache.tokens, asked.slice(0, cache.length));
        // Cut back, since how much was computed is not ours to know.
        cache.truncate(before.length);
        break;
      }
      case "reload": {
        const path = `${this.folder}/saved.cache`;
        await cache.save(path);
        const loaded = await this.model.loadCache(path);
        assertEquals(loaded.tokens, cache.tokens);
        if (cache.capacity === loaded.capacity) {
          cache.dispose();
          held.cache = loaded;
        } else {
          loaded.dispose();
        }
        break;
      }
      case "dispose":
        cache.dispose();
        this.held.splice(this.held.indexOf(held), 1);
        return;
    }
    await this.check(held);
  }

  /** Requests without caches of their own, several at once, against one at a time. */
  async beside(tokens: readonly number[], count: number) {
    const options = { maxTokens: 6, temperature: 1, logprobs: 0 };
    const request = (model: Model, i: number) =>
      model.generate(tokens.slice(0, tokens.length - i % tokens.length), {
        ...options,
        seed: i,
        ignoreEos: true,
        reusePrefix: false,
      }).result();
    const all = await Promise.all(
      Array.from({ length: count }, (_, i) => request(this.model, i)),
    );
    for (const [i, { tokens, logprobs }] of all.entries()) {
      const alone = await request(this.naive, i);
      assertEquals(tokens, alone.tokens);
      assertEquals(logprobs, alone.logprobs);
    }
  }
}

Deno.test("any sequence of calls leaves caches as if each were computed alone", async () => {
  await inFolder(async (folder) => {
    await using naive = await loadModel(TINY, { prefixCacheBytes: 0 });
    await using model = await loadModel(TINY, { threads: 2, maxBatch: 3 });
    const start = model.memory();
    await fc.assert(
      fc.asyncProperty(
        fc.array(action, { minLength: 5, maxLength: 25 }),
        async (actions) => {
          const checker = new Checker(model, naive, folder);
          try {
            for (const action of actions) await checker.run(action);
          } finally {
            for (const { cache } of checker.held) cache.dispose();
          }
          model.clearPrefixCache();
          assertEquals(model.memory(), start, "a page was leaked");
          assertEquals(model.load, { running: 0, waiting: 0 });
        },
      ),
      { numRuns: 200, seed: 1 },
    );
  });
});

Deno.test("requests under forced preemption give the bits that they give alone", async () => {
  const pageBytes = 3 * 48 * 64 * 4;
  await using naive = await loadModel(TINY, { prefixCacheBytes: 0 });
  await using tight = await loadModel(TINY, { cacheBytes: 5 * pageBytes });
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(some, fc.integer({ min: 1, max: 90 })), {
        minLength: 2,
        maxLength: 6,
      }),
      async (requests) => {
        const run = (model: Model) =>
        (
          [tokens, maxTokens]: [number[], number],
          seed: number,
        ) =>
          model.generate(tokens, {
            maxTokens,
            seed,
            temperature: 1,
            logprobs: 0,
            ignoreEos: true,
            reusePrefix: false,
          }).result();
        const all = await Promise.all(requests.map(run(tight)));
        for (const [i, request] of requests.entries()) {
          const alone = await run(naive)(request, i);
          assertEquals(all[i].tokens, alone.tokens);
          assertEquals(all[i].logprobs, alone.logprobs);
        }
        assertEquals(tight.memory().caches, 0);
      },
    ),
    { numRuns: 60, seed: 2 },
  );
});

Deno.test("reused prefixes change logits by rounding alone", async () => {
  await using model = await loadModel(TINY);
  await fc.assert(
    fc.asyncProperty(
      fc.array(few, { minLength: 2, maxLength: 5 }),
      async (parts) => {
        for (let i = 1; i <= parts.length; i++) {
          const prompt = parts.slice(0, i).flat();
          const options = { maxTokens: 3, temperature: 0, logprobs: 2 };
          const reused = await model.generate(prompt, options).result();
          const fresh = await model.generate(prompt, {
            ...options,
            reusePrefix: false,
          }).result();
          for (const [n, { top, token }] of (fresh.logprobs ?? []).entries()) {
            const other = reused.logprobs?.[n];
            if (other?.token !== token) {
              assert(top[0].logprob - top[1].logprob < 1e-3, "another token");
              break;
            }
            assert(Math.abs(other.logprob - (top[0].logprob)) < 1e-5);
          }
        }
      },
    ),
    { numRuns: 20, seed: 3 },
  );
  model.clearPrefixCache();
  assertEquals(model.memory().prefixCache, 0);
});
