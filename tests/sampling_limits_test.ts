/** Sampling at its limits: the smallest temperatures, filters of thousands of tokens. */
import { assert, assertEquals } from "@std/assert";
import { Kernels, type SamplingValues } from "../ffi/mod.ts";
import { normals } from "./support/ops.ts";
import { draw, filter, OFF } from "./support/sampling.ts";

Deno.test("sample() takes the largest logit at the smallest temperatures", async () => {
  using kernels = new Kernels({ threads: 1 });
  for (const temperature of [1e-3, 1e-20, 1e-38, 1e-40, 1.5e-45]) {
    const samplings = Array.from(
      { length: 40 },
      (_, i) => ({ ...OFF, temperature, seed: BigInt(i) }),
    );
    for (const logits of [[5, 7, 6], [-5, -3, -6], [-5, 0, -6]]) {
      assertEquals(
        new Set(await draw(kernels, Float32Array.from(logits), samplings)),
        new Set([1]),
        `temperature ${temperature}, logits ${logits}`,
      );
    }
  }
});

/** Keeps tokens in this order while the mass before them is below p. */
function keepMass(p: Float64Array, order: readonly number[], limit: number) {
  const kept = new Float64Array(p.length);
  let mass = 0;
  for (const token of order) {
    if (mass >= limit) break;
    kept[token] = p[token];
    mass += p[token];
  }
  return kept.map((value) => value / mass);
}

/** One filter as Hugging Face's processors define it, in float64. */
function expected(
  logits: Float32Array,
  { top_k = 0, top_p = 1, min_p = 0, typical_p = 1 }: SamplingValues,
): Float64Array {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const powers = Float64Array.from(logits, (x) => Math.exp(x - largest));
  const sum = powers.reduce((a, b) => a + b);
  const p = powers.map((x) => x / sum);
  const sorted = (key: (value: number) => number) =>
    Array.from(p.keys()).sort((a, b) => key(p[a]) - key(p[b]) || a - b);
  if (top_p < 1) return keepMass(p, sorted((x) => -x), Math.fround(top_p));
  if (typical_p < 1) {
    const entropy = -p.reduce((total, x) => total + x * Math.log(x), 0);
    const order = sorted((x) => Math.abs(-Math.log(x) - entropy));
    return keepMass(p, order, Math.fround(typical_p));
  }
  const last = top_k > 0 ? Float64Array.from(p).sort().at(-top_k) ?? 0 : 0;
  const floor = Math.max(last, Math.fround(min_p) * Math.max(...p));
  const kept = p.map((x) => x >= floor ? x : 0);
  const mass = kept.reduce((a, b) => a + b);
  return kept.map((x) => x / mass);
}

Deno.test("moela_filter() follows the definitions over thousands of tokens", () => {
  const options: SamplingValues[] = [
    { top_k: 1 },
    { top_k: 700 },
    { top_p: 0.01 },
    { top_p: 0.5 },
    { top_p: 0.9 },
    { top_p: 0.999 },
    { min_p: 0.02 },
    { typical_p: 0.1 },
    { typical_p: 0.9 },
  ];
  for (const [seed, deviation] of [0.1, 1, 4].entries()) {
    const logits = normals(3001, seed, deviation);
    for (const values of options) {
      const found = filter({ ...OFF, ...values }, new Int32Array(1), logits);
      const what = `deviation ${deviation}, ${JSON.stringify(values)}`;
      let kept = 0;
      for (const [token, p] of expected(logits, values).entries()) {
        assert(Math.abs(found[token] - p) <= 1e-7 + 1e-5 * p, what);
        if (p > 0) kept++;
      }
      assertEquals(found.filter((p) => p > 0).length, kept, what);
    }
  }
});
