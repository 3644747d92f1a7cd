/** Two hundred random cancellations: each stops in time and leaves everything else right. */
import { assert, assertEquals } from "@std/assert";
import { type Generation, loadModel } from "../mod.ts";
import { openLibraries } from "./support/open_library.ts";
import { Random } from "./support/numbers.ts";

openLibraries();
const NANO = new URL("../models/nano/", import.meta.url);

/** Ways to stop; each resolves when the work has ended. */
type Stop = (
  generation: Generation,
  controller: AbortController,
) => PromiseLike<unknown>;

const STOPS: readonly Stop[] = [
  (generation) => generation.return(),
  (generation) => generation[Symbol.asyncDispose](),
  async (generation) => {
    for await (const _ of generation) break;
  },
  async (generation, controller) => {
    controller.abort(new Error("stop"));
    await generation.result().catch(() => {});
  },
];

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

Deno.test("200 random cancellations stop in time", async () => {
  await using model = await loadModel(NANO, { prefixCacheBytes: 0 });
  const random = new Random(1);
  const tokens = (count: number) =>
    Array.from({ length: count }, () => random.integer(4096));
  // One request goes on through all of it, and must not notice.
  const prompt = tokens(20);
  const options = { maxTokens: 400, temperature: 1, seed: 1, ignoreEos: true };
  const expected = await model.generate(prompt, options).result();
  // A step of 512 rows, and its wait for a thread, on a slow and busy machine.
  const limit = 2000;
  let steady = model.generate(prompt, options).result();
  for (let i = 0; i < 200; i++) {
    const cache = random.integer(2) ? model.createCache() : undefined;
    const controller = new AbortController();
    const input = tokens(random.integer(4) ? 30 : 2000);
    const generation = model.generate(input, {
      cache,
      signal: controller.signal,
      ignoreEos: true,
      seed: i,
    });
    await sleep(random.integer(4) * 5);
    const start = performance.now();
    await random.pick(STOPS)(generation, controller);
    const took = performance.now() - start;
    assert(took < limit, `cancellation ${i} took ${took} ms`);
    const result = await generation.result().catch(() => undefined);
    assertEquals(result?.finishReason ?? "abort", "abort");
    if (cache) {
      const asked = [...input, ...result?.tokens ?? []];
      const held = cache.tokens;
      if (result) assertEquals(held, asked.slice(0, held.length));
      else {assertEquals(
          held.slice(0, input.length),
          input.slice(0, held.length),
        );}
      // Free at once.
      cache.truncate(0);
      cache.dispose();
    }
    if (i % 50 === 49) {
      assertEquals((await steady).tokens, expected.tokens);
      steady = model.generate(prompt, options).result();
    }
  }
  await steady;
  assertEquals(model.load, { running: 0, waiting: 0 });
  assertEquals(model.memory().caches, 0);
});
