/**
 * Random sequences of calls over many caches against a naive model that recomputes everything: bit by
 * bit where no prefix is reused, also when pages run out; within rounding where one is.
 */
import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { loadModel, type LoadOptions, type Model } from "../mod.ts";
import { action, alike, few, some, VOCAB } from "./support/cache_actions.ts";
import { assertClose, Checker, PAGE_BYTES } from "./support/cache_checker.ts";
import { checkpointFolder } from "./support/fixtures.ts";
import { inFolder } from "./support/folder.ts";
import { openLibraries } from "./support/open_library.ts";

openLibraries();
const TINY = checkpointFolder("tiny-v2");

/** Runs random sequences of calls, and checks that each leaves nothing behind. */
async function checkSequences(
  { reusePrefix, pages, ...load }: LoadOptions & {
    reusePrefix: boolean;
    pages?: number;
  },
  { numRuns, seed }: { numRuns: number; seed: number },
) {
  const one = reusePrefix ? fc.oneof(action, alike) : action;
  const [minLength, maxLength] = pages ? [15, 40] : [5, 25];
  await inFolder(async (folder) => {
    await using naive = await loadModel(TINY, { prefixCacheBytes: 0 });
    await using model = await loadModel(TINY, {
      cacheBytes: pages && pages * PAGE_BYTES,
      ...load,
    });
    const start = model.memory();
    await fc.assert(
      fc.asyncProperty(
        fc.array(one, { minLength, maxLength }),
        async (actions) => {
          const options = { reusePrefix, pages };
          const checker = new Checker(model, naive, folder, options);
          try {
            for (const action of actions) await checker.run(action);
          } finally {
            checker.dispose();
          }
          model.clearPrefixCache();
          assertEquals(model.memory(), start, "a page was leaked");
          assertEquals(model.load, { running: 0, waiting: 0 });
        },
      ),
      { numRuns, seed },
    );
  });
}

Deno.test("any sequence of calls leaves caches as if each were computed alone", async () => {
  await checkSequences(
    { reusePrefix: false, threads: 2, maxBatch: 3 },
    { numRuns: 200, seed: 1 },
  );
});

Deno.test("so it does when pages run out", async () => {
  const before = Checker.refused;
  await checkSequences(
    { reusePrefix: false, pages: 6, maxBatch: 4 },
    { numRuns: 100, seed: 4 },
  );
  assert(Checker.refused > before + 20, "pages hardly ran out");
});

Deno.test("so it does within rounding when prefixes are reused and given up", async () => {
  const before = Checker.reused;
  await checkSequences(
    { reusePrefix: true, prefixCacheBytes: 5 * PAGE_BYTES },
    { numRuns: 100, seed: 5 },
  );
  assert(Checker.reused > before + 50, "prefixes were hardly reused");
});

Deno.test("requests under forced preemption give the bits that they give alone", async () => {
  await using naive = await loadModel(TINY, { prefixCacheBytes: 0 });
  await using tight = await loadModel(TINY, { cacheBytes: 5 * PAGE_BYTES });
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
          const options = { maxTokens: 3, temperature: 0, logprobs: VOCAB };
          const reused = await model.generate(prompt, options).result();
          const fresh = await model.generate(prompt, {
            ...options,
            reusePrefix: false,
          }).result();
          assertClose(reused, fresh);
        }
      },
    ),
    { numRuns: 20, seed: 3 },
  );
  model.clearPrefixCache();
  assertEquals(model.memory().prefixCache, 0);
});
