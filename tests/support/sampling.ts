/** Samplings for `Kernels.sample` and `moela_filter`. */
import {
  type Kernels,
  openLibrary,
  type SamplingValues,
} from "../../ffi/mod.ts";
import { ErrorBuffer } from "../../ffi/status.ts";
import { Sampling } from "../../ffi/structs.ts";
import type { Floats } from "./ops.ts";

const { symbols } = openLibrary();

/** A temperature of 1 and nothing else. */
export const OFF: SamplingValues = {
  temperature: 1,
  top_p: 1,
  typical_p: 1,
  repetition_penalty: 1,
  mask: -1,
  top_logprobs: -1,
};

/** Options of the fixtures: Hugging Face's names. */
export interface FilterOptions {
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

/** The bits of an f32. */
export function floatBits(x: number): number {
  return new Int32Array(Float32Array.of(x).buffer)[0];
}

/** The f32 of bits. */
export function fromBits(bits: number): number {
  return new Float32Array(Int32Array.of(bits).buffer)[0];
}

/** A sampling and its lists: prompt, output, then pairs of the bias. */
export function lists(
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

/** The distribution that a draw would come from. */
export function filter(
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
export async function draw(
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
