/**
 * Row invariance (docs/numerics.md): a row's bits depend on its inputs, its position and its own
 * cache only. Not on other rows, their number, chunk borders of one path, threads or pages.
 */
import { assertEquals } from "@std/assert";
import { type Cache, loadModel, type Model } from "../mod.ts";
import { checkpointFolder } from "./support/fixtures.ts";
import { assertSameBits, floatTypes, kernelSets } from "./support/ops.ts";
import { Random } from "./support/numbers.ts";

const NAMES = ["tiny-v2", "real-heads"] as const;
const NANO = new URL("../models/nano/", import.meta.url);

function randomTokens(count: number, vocab_size: number, seed: number) {
  const random = new Random(seed);
  return Array.from({ length: count }, () => random.integer(vocab_size));
}

/** Logits of all tokens on the absorbed path, appended in chunks of less than 128. */
async function absorbed(
  model: Model,
  tokens: readonly number[],
  seed: number,
): Promise<Float32Array<ArrayBuffer>> {
  const random = new Random(seed);
  const cache: Cache = model.createCache();
  const parts: number[] = [];
  for (let at = 0; at < tokens.length;) {
    const chunk = tokens.slice(at, at + 1 + random.integer(100));
    parts.push(...await model.forward(chunk, { cache, logits: "all" }));
    at += chunk.length;
  }
  cache.dispose();
  return Float32Array.from(parts);
}

for (const name of NAMES) {
  for (const weights of floatTypes) {
    for (const kernels of kernelSets) {
      if (kernels === "reference" && name === "real-heads") continue; // slow
      const options = { weights, kernels };
      const title = `${name}, ${weights}, ${kernels}`;

      Deno.test(`absorbed rows are bit-equal in any company (${title})`, async () => {
        await using one = await loadModel(checkpointFolder(name), {
          ...options,
          threads: 1,
        });
        await using three = await loadModel(checkpointFolder(name), {
          ...options,
          threads: 3,
        });
        const { vocab_size } = one.config;
        const tokens = randomTokens(150, vocab_size, 1);
        const alone = await absorbed(one, tokens, 2);
        assertSameBits(await absorbed(one, tokens, 3), alone, "other chunks");
        assertSameBits(
          await absorbed(three, tokens, 4),
          alone,
          "three threads",
        );
        // Other sequences in the same steps, on both paths; the pages lie elsewhere, too.
        const others = [7, 100, 300, 1].map((n, i) =>
          three.forward(randomTokens(n, vocab_size, 10 + i))
        );
        const [beside] = await Promise.all([
          absorbed(three, tokens, 5),
          ...others,
        ]);
        assertSameBits(beside, alone, "beside others");
      });

      Deno.test(`up-projected rows are bit-equal at any chunk border (${title})`, async () => {
        await using model = await loadModel(checkpointFolder(name), options);
        const { vocab_size } = model.config;
        const tokens = randomTokens(330, vocab_size, 6);
        const whole = await model.forward(tokens);
        // Decoding rows of others take places in the steps, which moves the chunks' borders.
        const others = Array.from(
          { length: 5 },
          (_, i) => model.forward(randomTokens(i * 60 + 3, vocab_size, 20 + i)),
        );
        const [beside] = await Promise.all([model.forward(tokens), ...others]);
        assertSameBits(
          new Float32Array(beside),
          new Float32Array(whole),
          "beside others",
        );
        // A first call of 200 and a second of 130 tokens: both are up-projected.
        const cache = model.createCache();
        await model.forward(tokens.slice(0, 200), { cache });
        const second = await model.forward(tokens.slice(200), { cache });
        assertEquals(cache.length, 330);
        assertSameBits(
          new Float32Array(second),
          new Float32Array(whole),
          "in two calls",
        );
        // Logits of all rows are computed in chunks of 64.
        const all = await model.forward(tokens, { logits: "all" });
        assertSameBits(
          all.slice(-vocab_size),
          new Float32Array(whole),
          "in chunks of 64",
        );
      });
    }
  }
}

// Whatever the addresses of their weights are.
Deno.test("a long prompt has the same bits in each of several models", async () => {
  const tokens = randomTokens(150, 4096, 30);
  await using first = await loadModel(NANO);
  const expected = new Float32Array(await first.forward(tokens));
  await using second = await loadModel(NANO);
  await using third = await loadModel(NANO);
  for (const model of [second, third, first]) {
    using cache = model.createCache();
    const found = new Float32Array(await model.forward(tokens, { cache }));
    assertSameBits(found, expected, "another model");
  }
});
