/** Draws at the edges: ties, stop tokens, masks, numbers that are none; and what is told of them. */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { loadModel } from "../mod.ts";
import { Kernels, NativeModel, type SamplingValues } from "../ffi/mod.ts";
import { openLibraries } from "./support/open_library.ts";
import { draw, floatBits, fromBits, lists, OFF } from "./support/sampling.ts";

// Before the tests: a library opened within one counts as a leak of it.
openLibraries();

Deno.test("sample() at temperature 0 takes the lowest of equal logits", async () => {
  using kernels = new Kernels();
  const greedy = { ...OFF, temperature: 0 };
  assertEquals(
    await draw(kernels, Float32Array.of(1, 3, 2, 3, -1, 3), [greedy]),
    [1],
  );
  const zeros = new Float32Array(70);
  assertEquals(await draw(kernels, zeros, [greedy]), [0]);
  zeros[68] = zeros[69] = 1e-30;
  assertEquals(await draw(kernels, zeros, [greedy]), [68]);
});

Deno.test("sample() with a tiny temperature takes the largest logit", async () => {
  using kernels = new Kernels();
  const cold = (index: number) => ({ ...OFF, temperature: 1e-38, index });
  const logits = Float32Array.of(-50, 20, 3, 19.99);
  assertEquals(await draw(kernels, logits, [0, 1, 2, 3].map(cold)), [
    1,
    1,
    1,
    1,
  ]);
});

Deno.test("sample() says which tokens are stop tokens, and none before min_index", async () => {
  using kernels = new Kernels();
  const logits = Float32Array.of(0, 9, 5, 8, 1);
  const aux = Int32Array.of(1, 3);
  const at = (index: number, temperature: number) => ({
    ...OFF,
    temperature,
    stop: 0,
    n_stop: 2,
    min_index: 2,
    index,
  });
  const samplings = [at(0, 0), at(1, 0), at(2, 0), at(3, 0)];
  const rows = new Float32Array(4 * 5);
  samplings.forEach((_, i) => rows.set(logits, 5 * i));
  const entries = await kernels.sample(rows, samplings, aux);
  const told = samplings.map((_, i) => [
    entries[4 * i],
    entries[4 * i + 1],
    entries[4 * i + 3],
  ]);
  assertEquals(told, [[0, 2, 0], [1, 2, 0], [2, 1, 1], [3, 1, 1]]);
  const many = Array.from({ length: 500 }, (_, i) => ({
    ...at(1, 2),
    seed: BigInt(i),
  }));
  const drawn = new Set(await draw(kernels, logits, many, aux));
  assertEquals([...drawn].sort(), [0, 2, 4]);
});

Deno.test("sample() draws only what mask and bias allow", async () => {
  using kernels = new Kernels();
  const vocab = 70;
  const allowed = [2, 31, 32, 63, 64, 69];
  // Three words of mask, then a bias: the mask wins over it.
  const aux = new Int32Array(3 + 4);
  for (const token of allowed) aux[token >> 5] |= 1 << (token & 31);
  aux.set([5, floatBits(100), 64, floatBits(-Infinity)], 3);
  const values = { ...OFF, mask: 0, bias: 3, n_bias: 2 };
  const logits = new Float32Array(vocab);
  const samplings = Array.from({ length: 400 }, (_, i) => ({
    ...values,
    seed: BigInt(i),
  }));
  const drawn = await draw(kernels, logits, samplings, aux);
  assertEquals(
    [...new Set(drawn)].sort((a, b) => a - b),
    [2, 31, 32, 63, 69],
  );
  const [greedy] = await draw(
    kernels,
    logits,
    [{ ...values, temperature: 0 }],
    aux,
  );
  assertEquals(greedy, 2);
});

Deno.test("sample() survives NaN, infinities and masks that allow nothing", async () => {
  using kernels = new Kernels();
  const kinds = [
    { ...OFF, temperature: 0 },
    { ...OFF, top_logprobs: 3 },
    { ...OFF, top_k: 2, top_p: 0.5, min_p: 0.2, typical_p: 0.5 },
  ];
  const check = async (
    name: string,
    logits: number[],
    expected: number,
    extra: SamplingValues = {},
    aux = new Int32Array(1),
  ) => {
    const rows = Float32Array.from(kinds.flatMap(() => logits));
    const samplings = kinds.map((kind) => ({ ...kind, ...extra }));
    const entries = await kernels.sample(rows, samplings, aux, 10);
    const drawn = kinds.map((_, i) => entries[10 * i + 1]);
    assertEquals(drawn, kinds.map(() => expected), name);
  };
  await check("all NaN", [NaN, NaN, NaN, NaN], 0);
  await check("one number", [NaN, NaN, -3, NaN], 2);
  await check("all -Infinity", new Array(4).fill(-Infinity), 0);
  await check("Infinity", [1, 2, Infinity, 0], 2);
  await check("nothing allowed", [1, 2, 3, 4], 0, { mask: 0 });
  await check(
    "only stop tokens, too early",
    [1, 2, 3, 4],
    0,
    { n_stop: 4, min_index: 1 },
    Int32Array.of(0, 1, 2, 3),
  );
});

Deno.test("sample() tells log-probabilities of the raw logits", async () => {
  using kernels = new Kernels();
  // Three equal ones, and the largest is forbidden to the draw.
  const logits = Float32Array.of(0.5, 2, -1, 2, 0, 1, 3, 2, -4, 0.25);
  const { values, aux } = lists(
    { temperature: 0.5, top_k: 3, logit_bias: { 6: -Infinity } },
    [1, 2],
    [6],
  );
  const n = 8;
  const rows = Float32Array.from([...logits, ...logits, ...logits]);
  const samplings = [n, 0, -1].map((top_logprobs, i) => ({
    ...values,
    seed: BigInt(i),
    top_logprobs,
  }));
  const words = 4 + 2 * n;
  const entries = await kernels.sample(rows, samplings, aux, words);
  const sum = logits.reduce((sum, x) => sum + Math.exp(x), 0);
  const logprob = (token: number) => logits[token] - Math.log(sum);
  for (const row of [0, 1]) {
    const token = entries[row * words + 1];
    assert(token !== 6);
    const told = fromBits(entries[row * words + 2]);
    assertAlmostEquals(told, logprob(token), 1e-6);
  }
  assert(Number.isNaN(fromBits(entries[2 * words + 2])));
  const order = Array.from(logits.keys()).sort((a, b) =>
    logits[b] - logits[a] || a - b
  );
  for (let i = 0; i < n; i++) {
    assertEquals(entries[4 + 2 * i], order[i], `rank ${i}`);
    const told = fromBits(entries[5 + 2 * i]);
    assertAlmostEquals(told, logprob(order[i]), 1e-6);
  }
});

Deno.test("a sampling that points outside its lists is refused", async () => {
  using kernels = new Kernels();
  const aux = new Int32Array(4);
  const bad: [SamplingValues, string][] = [
    [{ ...OFF, n_bias: 3 }, "a bias list is out of range"],
    [{ ...OFF, stop: 3, n_stop: 2 }, "a stop list is out of range"],
    [{ ...OFF, history: -1, n_prompt: 1 }, "a history is out of range"],
    [{ ...OFF, mask: 4 }, "a mask is out of range"],
    [{ ...OFF, top_p: 0 }, "a sampling option is out of range"],
    [{ ...OFF, temperature: NaN }, "a sampling option is out of range"],
    [{ ...OFF, n_output: -1 }, "a sampling list has a negative length"],
  ];
  for (const [values, reason] of bad) {
    let message = "";
    try {
      await kernels.sample(new Float32Array(40), [values], aux);
    } catch (error) {
      message = error instanceof Error ? error.message : "";
    }
    assertEquals(message, `Cannot run the step: ${reason}`);
  }
});

Deno.test("penalties count the tokens drawn within one call of several steps", async () => {
  await using model = await loadModel(
    new URL("../models/nano/", import.meta.url),
    { weights: "f32" },
  );
  let several = 0;
  const run = NativeModel.prototype.run;
  NativeModel.prototype.run = function (step) {
    if ((step.steps ?? 1) > 1) several++;
    return run.call(this, step);
  };
  const prompt = [10, 500, 1200, 42];
  const presence = 1.5, frequency = 0.75, repetition = 1.2;
  const { tokens } = await model.generate(prompt, {
    maxTokens: 40,
    temperature: 0,
    ignoreEos: true,
    presencePenalty: presence,
    frequencyPenalty: frequency,
    repetitionPenalty: repetition,
  }).result().finally(() => NativeModel.prototype.run = run);
  assert(several > 0, "no call ran several steps");

  const cache = model.createCache();
  let logits = await model.forward(prompt, { cache });
  const output: number[] = [];
  for (const token of tokens) {
    const x = Float64Array.from(logits);
    for (const id of new Set([...prompt, ...output])) {
      x[id] = x[id] < 0 ? x[id] * repetition : x[id] / repetition;
    }
    for (const id of new Set(output)) {
      const count = output.filter((other) => other === id).length;
      x[id] -= count * frequency + presence;
    }
    const best = x.reduce((best, value, id) => value > x[best] ? id : best, 0);
    assertEquals(token, best, `token ${output.length}`);
    output.push(token);
    logits = await model.forward([token], { cache });
  }
});
