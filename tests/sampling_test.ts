/** From logits to a token: the filters' distributions, the noise, and draws from both. */
import { assert, assertEquals } from "@std/assert";
import { Kernels } from "../ffi/mod.ts";
import { assertClose, type Floats, normals } from "./support/ops.ts";
import { gumbel, philox4x32 } from "./support/philox.ts";
import {
  draw,
  filter,
  type FilterOptions,
  lists,
  OFF,
} from "./support/sampling.ts";

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

/**
 * The probabilities with those of equal logits in descending order: where a cut falls among equals,
 * the fixtures keep any of them (their order was an unstable sort's), the library the lowest ids.
 */
function orderTies(probabilities: ArrayLike<number>, unfiltered: Floats) {
  const ties = Map.groupBy(unfiltered.keys(), (token) => unfiltered[token]);
  const ordered = Array.from(probabilities);
  for (const tokens of ties.values()) {
    const values = tokens.map((token) => probabilities[token]);
    values.sort((a, b) => b - a);
    tokens.forEach((token, i) => ordered[token] = values[i]);
  }
  return ordered;
}

Deno.test("moela_filter() gives the distributions of all fixtures", () => {
  assertEquals(cases.length, 140);
  const amongTies: number[] = [];
  cases.forEach(({ logits, options, prompt, output, probabilities }, i) => {
    const x = Float32Array.from(LOGITS[logits]);
    const { values, aux } = lists(options, prompt, output);
    const off = { top_k: 0, top_p: 1, min_p: 0, typical_p: 1 };
    const unfiltered = filter({ ...values, ...off }, aux, x);
    const found = filter(values, aux, x);
    const name = `case ${i} ${logits} ${JSON.stringify(options)}`;
    // Of equals the lowest ids stay.
    assertEquals(Array.from(found), orderTies(found, unfiltered), name);
    assertClose(found, orderTies(probabilities, unfiltered), 1e-6, name);
    const differs = (p: number, token: number) =>
      Math.abs(p - found[token]) > 1e-6;
    if (probabilities.some(differs)) amongTies.push(i);
  });
  // All others are met token by token.
  assertEquals(amongTies, [61, 79]);
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
      [0, 1, 2, 1000, 2 ** 31 - 1 - 65536].map((index) => ({
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
  assert(new Set(drawn).size > 10, "draws hardly differ");
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
