/**
 * How many bytes a token has to read: what its speed is measured against when memory is the limit.
 *
 * @module
 */
import type { ModelConfig } from "../src/model/config.ts";
import { expectedTensors } from "../src/weights/expect.ts";

/** What {@link bytesPerToken} counts. */
export interface Traffic {
  /** Bytes of a weight's element. */
  weightBytes: number;
  /** Bytes of a cache element. */
  cacheBytes: number;
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
  const { weightBytes, cacheBytes, rows, context } = traffic;
  const { num_experts_per_tok, n_routed_experts } = config;
  const chosen = 1 - (1 - num_experts_per_tok / n_routed_experts) ** rows;
  let elements = config.hidden_size;
  for (const { name, shape } of expectedTensors(config)) {
    const isEmbedding = name === "model.embed_tokens.weight";
    if (isEmbedding && !config.tie_word_embeddings) continue;
    if (name === "lm_head.weight" && config.tie_word_embeddings) continue;
    const size = shape.reduce((product, n) => product * n, 1);
    elements += size * (name.includes(".experts.") ? chosen : 1) / rows;
  }
  const entry = config.kv_lora_rank + config.qk_rope_head_dim;
  return elements * weightBytes +
    context * config.num_hidden_layers * entry * cacheBytes;
}
