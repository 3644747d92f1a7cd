/**
 * How many bytes a token has to read: what its speed is measured against when memory is the limit.
 *
 * @module
 */
import type { WeightDType } from "../ffi/mod.ts";
import { type CacheType, entryBytes } from "../src/cache/type.ts";
import type { ModelConfig } from "../src/model/config.ts";
import { projectionType } from "../src/weights/bind.ts";
import { expectedTensors } from "../src/weights/expect.ts";

/** Bytes of a weight `[rows, cols]` in its type, scales included: see `moela_weight_desc`. */
function weightBytes(type: WeightDType, rows: number, cols: number): number {
  const groups = Math.ceil(cols / 128);
  switch (type) {
    case "f32":
      return 4 * rows * cols;
    case "bf16":
      return 2 * rows * cols;
    case "fp8":
      return rows * cols + 4 * Math.ceil(rows / 128) * groups;
    case "int8":
      return rows * (cols + 2 * groups);
    case "int4":
      return rows * (32 * Math.ceil(cols / 64) + 4 * groups);
  }
}

/** What {@link bytesPerToken} counts. */
export interface Traffic {
  /** Type of the projections. */
  weights: WeightDType;
  /** Type of the cache. */
  cache: CacheType;
  /** Rows that share a step, and so the reading of a weight. */
  rows: number;
  /** Tokens of the cache that one row reads for itself. */
  context: number;
}

/**
 * Bytes of weights and cache read for a token. Of the experts count those that `rows` rows choose
 * on average when each chooses evenly: `1 - (1 - k / E)^rows` of all.
 */
export function bytesPerToken(config: ModelConfig, traffic: Traffic): number {
  const { weights, cache, rows, context } = traffic;
  const { num_experts_per_tok, n_routed_experts } = config;
  const chosen = 1 - (1 - num_experts_per_tok / n_routed_experts) ** rows;
  // Norms and embedding stay as they are stored; the router runs in f32.
  const exact = weights === "f32" ? "f32" : "bf16";
  let bytes = weightBytes(exact, 1, config.hidden_size);
  for (const { name, shape, scaled } of expectedTensors(config)) {
    const isEmbedding = name === "model.embed_tokens.weight";
    if (isEmbedding && !config.tie_word_embeddings) continue;
    if (name === "lm_head.weight" && config.tie_word_embeddings) continue;
    const wanted = projectionType(name, weights, "bf16");
    const plain = name.includes(".mlp.gate.") ? "f32" : exact;
    const type = scaled.length > 0 && wanted !== "auto" ? wanted : plain;
    const [out, cols] = shape.length === 1 ? [1, shape[0]] : shape;
    const share = name.includes(".experts.") ? chosen : 1;
    bytes += weightBytes(type, out, cols) * share / rows;
  }
  const width = config.kv_lora_rank + config.qk_rope_head_dim;
  return bytes +
    context * config.num_hidden_layers * entryBytes(cache, width);
}
