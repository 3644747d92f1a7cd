/** From logits to a token: filters, noise, draws, and what is told about them. */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { loadModel } from "../mod.ts";
import {
  Kernels,
  NativeModel,
  openLibrary,
  type SamplingValues,
} from "../ffi/mod.ts";
import { ErrorBuffer } from "../ffi/status.ts";
import { Sampling } from "../ffi/structs.ts";
import { assertClose, type Floats, normals } from "./support/ops.ts";
import { gumbel, philox4x32 } from "./support/philox.ts";

const { symbols } = openLibrary();

const OFF: SamplingValues = {
  temperature: 1,
  top_p: 1,
  typical_p: 1,
  repetition_penalty: 1,
  mask: -1,
  top_logprobs: -1,
};

/** Options of the fixtures: Hugging Face's names. */
interface FilterOptions {
  temperature?: number;
  top_k?: number;
  top_p?: number;
  min_p?: number;
  typical_p?: number;
  repetition_penalty?: number;
  presence_penalty?: number;
  frequency_penalty?: number;
  logit_bias?: Record<string, number>;
}

function floatBits(x: number): number {
  return new Int32Array(Float32Array.of(x).buffer)[0];
}

function fromBits(bits: number): number {
  return new Float32Array(Int32Array.of(bits).buffer)[0];
}

/** A sampling and its lists: prompt, output, then pairs of the bias. */
function lists(
  { logit_bias = {}, ...options }: FilterOptions,
  prompt: readonly number[] = [],
  output: readonly number[] = [],
): { values: SamplingValues; aux: Int32Array<ArrayBuffer> } {
  const bias = Object.entries(logit_bias).flatMap((
    [token, value],
  ) => [Number(token), floatBits(value)]);
  const values = {
    ...OFF,
    ...options,
    n_prompt: prompt.length,
    n_output: output.length,
    bias: prompt.length + output.length,
    n_bias: bias.length / 2,
  };
  return { values, aux: Int32Array.from([...prompt, ...output, ...bias, 0]) };
}

function filter(
  values: SamplingValues,
  aux: Int32Array<ArrayBuffer>,
  logits: Floats,
): Floats {
  const probabilities = new Float32Array(logits.length);
  const err = new ErrorBuffer();
  err.check(
    symbols.moela_filter(
      Sampling.encode(values),
      aux,
      aux.length,
      logits,
      BigInt(logits.length),
      probabilities,
      err.bytes,
      err.length,
    ),
    "Cannot filter",
  );
  return probabilities;
}

/** One token for each sampling, all from the same logits. */
async function draw(
  kernels: Kernels,
  logits: Floats,
  samplings: readonly SamplingValues[],
  aux?: Int32Array<ArrayBuffer>,
): Promise<number[]> {
  const rows = new Float32Array(logits.length * samplings.length);
  samplings.forEach((_, i) => rows.set(logits, i * logits.length));
  const entries = await kernels.sample(rows, samplings, aux);
  return samplings.map((_, i) => entries[4 * i + 1]);
}

const { logits: LOGITS, cases } = JSON.parse(
  await Deno.readTextFile(
    new URL("./fixtures/sampling.json", import.meta.url),
  ),
) as {
  logits: Record<string, number[]>;
  cases: {
    logits: string;
    options: FilterOptions;
    prompt: number[];
    output: number[];
    probabilities: number[];
  }[];
};
const wide = Float32Array.from(LOGITS.wide);

Deno.test("moela_filter() gives the distributions of all fixtures", () => {
  assertEquals(cases.length, 140);
  cases.forEach(({ logits, options, prompt, output, probabilities }, i) => {
    const { values, aux } = lists(options, prompt, output);
    assertClose(
      filter(values, aux, Float32Array.from(LOGITS[logits])),
      probabilities,
      1e-6,
      `case ${i} ${logits} ${JSON.stringify(options)}`,
    );
  });
});

Deno.test("philox4x32() of the tests gives Random123's known answers", () => {
  const hex = (words: number[]) =>
    words.map((word) => word.toString(16).padStart(8, "0")).join(" ");
  assertEquals(
    hex(philox4x32([0, 0, 0, 0], [0, 0])),
    "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
  );
  const ones = 0xffffffff;
  assertEquals(
    hex(philox4x32([ones, ones, ones, ones], [ones, ones])),
    "408f276d 41c83b0e a20bc7c6 6d5451fd",
  );
  assertEquals(
    hex(philox4x32(
      [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      [0xa4093822, 0x299f31d0],
    )),
    "d16cfe09 94fdcceb 5001e420 24126ea1",
  );
});

Deno.test("sample() draws the largest of logit plus Gumbel noise", async () => {
  using kernels = new Kernels();
  const seeds = [0n, 1n, 0x89abcdefn, 0xfedcba9876543210n, (1n << 64n) - 1n];
  const temperatures = [1, 0.5, 1.7];
  const samplings = seeds.flatMap((seed) =>
    temperatures.flatMap((temperature) =>
      [0, 1, 2, 1000, 2 ** 31 - 1].map((index) => ({
        ...OFF,
        temperature,
        seed,
        index,
      }))
    )
  );
  const drawn = await draw(kernels, wide, samplings);
  samplings.forEach(({ seed, index, temperature }, i) => {
    let best = -Infinity, expected = -1;
    wide.forEach((x, token) => {
      const score = x / temperature + gumbel(seed, index, token);
      if (score > best) [best, expected] = [score, token];
    });
    assertEquals(drawn[i], expected, `seed ${seed}, index ${index}`);
  });
  assert(new Set(drawn).size > 20, "draws hardly differ");
});

/** The 1 - 1e-4 quantile of chi-square (Wilson and Hilferty 1931). */
function chiSquareLimit(degrees: number): number {
  const spread = 2 / (9 * degrees);
  return degrees * (1 - spread + 3.719 * Math.sqrt(spread)) ** 3;
}

const DISTRIBUTIONS: Record<string, FilterOptions> = {
  "no filter": {},
  "a low temperature": { temperature: 0.6 },
  "top-k and a bias": { top_k: 12, logit_bias: { 3: 2, 37: -Infinity } },
  "top-p and penalties": {
    top_p: 0.8,
    repetition_penalty: 1.3,
    frequency_penalty: 0.4,
  },
  "min-p and typical-p": { temperature: 1.5, min_p: 0.1, typical_p: 0.9 },
};

for (const [name, options] of Object.entries(DISTRIBUTIONS)) {
  Deno.test(`sample() follows the filtered distribution with ${name}`, async () => {
    using kernels = new Kernels();
    const { values, aux } = lists(options, [3, 12, 50], [37, 13, 13, 22]);
    const probabilities = filter(values, aux, wide);
    const draws = 16384;
    // As one long output, and as the first token of many.
    const series = [
      (i: number) => ({ ...values, seed: 5n, index: i }),
      (i: number) => ({ ...values, seed: BigInt(i) * 7919n, index: 0 }),
    ];
    for (const [which, make] of series.entries()) {
      const samplings = Array.from({ length: draws }, (_, i) => make(i));
      const counts = new Array(wide.length).fill(0);
      for (const token of await draw(kernels, wide, samplings, aux)) {
        counts[token]++;
      }
      let chiSquare = 0, degrees = -1, rest = 0, restExpected = 0;
      probabilities.forEach((p, token) => {
        const expected = p * draws;
        if (p === 0) assertEquals(counts[token], 0, `token ${token}`);
        if (expected < 8) {
          rest += counts[token];
          restExpected += expected;
          return;
        }
        chiSquare += (counts[token] - expected) ** 2 / expected;
        degrees++;
      });
      if (restExpected > 1) {
        chiSquare += (rest - restExpected) ** 2 / restExpected;
        degrees++;
      }
      assert(degrees >= 5);
      assert(
        chiSquare < chiSquareLimit(degrees),
        `series ${which}: ${chiSquare} with ${degrees} degrees of freedom`,
      );
    }
  });
}

Deno.test("sample() does not depend on threads, kernels or other rows", async () => {
  const logits = normals(5000, 3, 2);
  const samplings = Array.from({ length: 40 }, (_, index) => ({
    ...OFF,
    top_p: 0.9,
    seed: 11n,
    index,
  }));
  using kernels = new Kernels();
  const together = await draw(kernels, logits, samplings);
  assertEquals(await draw(kernels, logits, samplings), together);
  const alone: number[] = [];
  using single = new Kernels({ threads: 1, kernels: "reference" });
  for (const sampling of samplings) {
    alone.push(...await draw(single, logits, [sampling]));
  }
  assertEquals(alone, together);
  assert(new Set(together).size > 10);
});

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
  const logits = Float32Array.from(LOGITS.ties);
  const { values, aux } = lists(
    { temperature: 0.5, top_k: 3, logit_bias: { 13: -Infinity } },
    [1, 2],
    [13],
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
    assert(token !== 13);
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
