/**
 * Multi-head latent attention by itself, through `ffi/mod.ts`: one new token attends to a cache of
 * latents, and a plain loop in float64 says what should come out.
 *
 * Run: deno run --allow-read --allow-ffi=build examples/kernels.ts
 *
 * Usage: kernels.ts [--heads N] [--tokens N]
 */
import { parseArgs } from "node:util";
import { Kernels } from "../ffi/mod.ts";

type Floats = Float32Array<ArrayBuffer>;

// Dimensions of a head in DeepSeek-V2, under the names of the paper: not rotated, rotated, values,
// and the latent that keys and values are made of.
const dn = 128, dr = 64, dv = 128, r = 512;
const SCALE = (dn + dr) ** -0.5;
const EPSILON = 1e-6;
/** Radians a position, for each pair of the rotated part. */
const FREQUENCIES = Float64Array.from(
  { length: dr / 2 },
  (_, i) => 10_000 ** (-2 * i / dr),
);

/** What goes in. */
interface Inputs {
  heads: number;
  tokens: number;
  /** `[tokens, r + dr]`: latents, not yet normed, and shared keys, not yet rotated. */
  kvA: Floats;
  /** `[heads, dn + dr]`: the queries of the last token, rotated. */
  q: Floats;
  /** `[heads (dn + dv), r]`: of each head W_UK, then W_UV. */
  kvB: Floats;
}

/** The latents go into a cache; then the last token attends to it. */
async function withKernels(kernels: Kernels, inputs: Inputs): Promise<Floats> {
  const { heads, tokens, kvA, q, kvB } = inputs;
  const shape = {
    num_attention_heads: heads,
    qk_nope_head_dim: dn,
    qk_rope_head_dim: dr,
    v_head_dim: dv,
    kv_lora_rank: r,
  };
  const cache = kernels.cache(shape, tokens);
  const norm = kernels.tensor(new Float32Array(r).fill(1));
  const frequencies = kernels.tensor(FREQUENCIES);
  const all = { cache, position: 0, rows: tokens };
  await kernels.cache_write(kvA, norm, frequencies, all, EPSILON);
  const weight = kernels.tensor(kvB, heads * (dn + dv), r);
  const last = { cache, position: tokens - 1, rows: 1 };
  return await kernels.mla_decode(q, weight, shape, SCALE, [last]);
}

/** What the cache holds for the token at `position`. */
function cacheEntry(kvA: Floats, position: number): Float64Array {
  const width = r + dr;
  const entry = Float64Array.from(
    kvA.subarray(position * width, (position + 1) * width),
  );
  let squares = 0;
  for (let i = 0; i < r; i++) squares += entry[i] ** 2;
  for (let i = 0; i < r; i++) entry[i] /= Math.sqrt(squares / r + EPSILON);
  FREQUENCIES.forEach((frequency, i) => {
    const cos = Math.cos(position * frequency);
    const sin = Math.sin(position * frequency);
    const even = r + 2 * i, odd = even + 1;
    const [a, b] = [entry[even], entry[odd]];
    entry[even] = a * cos - b * sin;
    entry[odd] = a * sin + b * cos;
  });
  return entry;
}

/** The definition: keys and values of every head for every token, then softmax(q k) v. */
function withLoops({ heads, tokens, kvA, q, kvB }: Inputs): Float64Array {
  const out = new Float64Array(heads * dv);
  const entries = Array.from({ length: tokens }, (_, t) => cacheEntry(kvA, t));
  for (let head = 0; head < heads; head++) {
    const query = q.subarray(head * (dn + dr));
    const weight = kvB.subarray(head * (dn + dv) * r);
    const project = (row: number, entry: Float64Array) => {
      let sum = 0;
      for (let i = 0; i < r; i++) sum += weight[row * r + i] * entry[i];
      return sum;
    };
    const scores = entries.map((entry) => {
      let score = 0;
      for (let i = 0; i < dn; i++) score += query[i] * project(i, entry);
      for (let i = 0; i < dr; i++) score += query[dn + i] * entry[r + i];
      return score * SCALE;
    });
    const max = Math.max(...scores);
    const sum = scores.reduce((sum, score) => sum + Math.exp(score - max), 0);
    entries.forEach((entry, t) => {
      const share = Math.exp(scores[t] - max) / sum;
      for (let i = 0; i < dv; i++) {
        out[head * dv + i] += share * project(dn + i, entry);
      }
    });
  }
  return out;
}

/** The norm of the difference over the norm of what is expected. */
function relativeError(actual: Floats, expected: Float64Array): number {
  const norm = (x: Float64Array) =>
    Math.sqrt(x.reduce((sum, value) => sum + value ** 2, 0));
  return norm(expected.map((value, i) => actual[i] - value)) / norm(expected);
}

async function main() {
  const { values } = parseArgs({
    args: Deno.args,
    options: {
      heads: { type: "string", default: "4" },
      tokens: { type: "string", default: "200" },
    },
  });
  const [heads, tokens] = (["heads", "tokens"] as const).map((name) => {
    const n = Number(values[name]);
    if (Number.isInteger(n) && n >= 1 && n <= 1000) return n;
    throw new RangeError(
      `--${name} is "${values[name]}", and must be an integer in [1, 1000]`,
    );
  });
  const random = (length: number, spread: number) =>
    Float32Array.from({ length }, () => spread * (2 * Math.random() - 1));
  const inputs = {
    heads,
    tokens,
    kvA: random(tokens * (r + dr), 2),
    q: random(heads * (dn + dr), 2),
    kvB: random(heads * (dn + dv) * r, 0.08),
  };

  using kernels = new Kernels();
  const out = await withKernels(kernels, inputs);
  const error = relativeError(out, withLoops(inputs));
  const { kernels: set } = kernels.device.info();
  console.log(`${heads} heads, ${tokens} tokens in the cache, ${set} kernels`);
  console.log(
    `a token holds ${r + dr} elements; keys and values of all heads would be ${
      heads * (dn + dr + dv)
    }`,
  );
  const shown = Array.from(out.subarray(0, 4), (value) => value.toFixed(6));
  console.log(`output: ${shown.join(" ")} …`);
  console.log(`relative error against plain loops: ${error.toExponential(1)}`);
  if (!(error <= 1e-5)) throw new Error("That is more than 1e-5");
}

try {
  await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  Deno.exit(1);
}
