/**
 * Seeded random weights: which numbers a tensor of a name gets from `moela_generate`. A file made
 * from them and a model made without a file have the same bits.
 *
 * @module
 */
import type { ModelConfig } from "../model/config.ts";
import { routerScaling } from "../model/router_config.ts";

const FNV_OFFSET = 0xcbf29ce484222325n;
const FNV_PRIME = 0x100000001b3n;

/**
 * The key of a tensor's random stream: FNV-1a, 64 bits, of its name in UTF-8.
 * Source: draft-eastlake-fnv, "The FNV Non-Cryptographic Hash Algorithm".
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { tensorKey } from "./generated.ts";
 *
 * assertEquals(tensorKey("a"), 0xaf63dc4c8601ec8cn);
 * ```
 */
export function tensorKey(name: string): bigint {
  let hash = FNV_OFFSET;
  for (const byte of new TextEncoder().encode(name)) {
    hash = BigInt.asUintN(64, (hash ^ BigInt(byte)) * FNV_PRIME);
  }
  return hash;
}

/** Mean and standard deviation of a tensor's elements. */
export interface Spread {
  /** The mean. */
  readonly mean: number;
  /** The standard deviation. */
  readonly deviation: number;
}

const NORM: Spread = { mean: 1, deviation: 0.1 };
/**
 * The mean is a direction that all tokens share, as in trained models: some experts are then chosen
 * more often than others, whatever the token.
 */
const EMBEDDING: Spread = { mean: 0.4, deviation: 1 };
const SELECTION_BIAS: Spread = { mean: 0, deviation: 0.01 };

/** Spread of the router's logits for normed input. */
const ROUTER_GAIN = 1.5;
/** One over the root mean square of silu(x) * y for standard normal x and y. */
const SWIGLU_GAIN = 1.68;

/**
 * Spread of a tensor's elements. A matrix maps inputs of root mean square 1 to outputs like them;
 * one that adds to the residual stream is smaller by the root of how many do, so that the stream
 * grows to no more than twice its size, through any number of layers.
 *
 * @param name the tensor's name in a checkpoint; experts of a layer have one spread
 * @param shape `[out, in]` or `[n]`, as stored
 */
export function generatedSpread(
  name: string,
  shape: readonly number[],
  config: ModelConfig,
): Spread {
  if (name.endsWith("norm.weight")) return NORM;
  if (name.endsWith("e_score_correction_bias")) return SELECTION_BIAS;
  if (name === "model.embed_tokens.weight") return EMBEDDING;
  const deviation = shape[shape.length - 1] ** -0.5;
  const residual = (2 * config.num_hidden_layers) ** -0.5;
  let gain = 1;
  if (name.endsWith(".mlp.gate.weight")) gain = ROUTER_GAIN;
  if (name.endsWith(".o_proj.weight")) gain = residual;
  if (name.endsWith(".down_proj.weight")) gain = residual * SWIGLU_GAIN;
  // The chosen experts add up to one, as if each had the same share of the router's factor.
  if (name.includes(".experts.") && name.endsWith(".down_proj.weight")) {
    gain *= Math.sqrt(config.num_experts_per_tok) / routerScaling(config).scale;
  }
  return { mean: 0, deviation: deviation * gain };
}
