/** The part of a config that says how tokens choose their experts. */

import type { ModelConfig, ModelType } from "./config.ts";
import type { Fields } from "./fields.ts";

/** Far above every release. */
const MAX_EXPERTS = 4096;

/**
 * Reads and checks it.
 *
 * @throws {CheckpointError} for a router that cannot choose its experts
 */
export function parseRouter(fields: Fields, type: ModelType) {
  const isV2 = type === "deepseek_v2";
  const n_routed_experts = fields.integer("n_routed_experts", {
    min: 1,
    max: MAX_EXPERTS,
  });
  const num_experts_per_tok = fields.integer("num_experts_per_tok", {
    min: 1,
    max: n_routed_experts,
  });
  const n_group = fields.integer("n_group", {
    min: 1,
    max: n_routed_experts,
    fallback: 1,
  });
  if (n_routed_experts % n_group !== 0) {
    fields.refuse("n_group", `a divisor of the ${n_routed_experts} experts`);
  }
  const topk_group = fields.integer("topk_group", {
    min: 1,
    max: n_group,
    fallback: 1,
  });
  const topk_method = isV2
    ? fields.choice(
      "topk_method",
      ["greedy", "group_limited_greedy"],
      n_group === 1 ? "greedy" : undefined,
    )
    : fields.choice("topk_method", ["noaux_tc"], "noaux_tc");
  const perGroup = n_routed_experts / n_group;
  if (topk_method === "noaux_tc" && perGroup < 2) {
    fields.refuse(
      "n_group",
      `at most ${Math.floor(n_routed_experts / 2)} for ${n_routed_experts} ` +
        "experts: a group's score is the sum of its best two",
    );
  }
  if (
    topk_method !== "greedy" && num_experts_per_tok > topk_group * perGroup
  ) {
    fields.refuse(
      "num_experts_per_tok",
      `at most ${topk_group * perGroup}, the experts in topk_group = ` +
        `${topk_group} groups of ${perGroup}`,
    );
  }
  return {
    n_shared_experts: fields.integer("n_shared_experts", {
      min: 0,
      max: MAX_EXPERTS,
      fallback: 0,
    }),
    n_routed_experts,
    num_experts_per_tok,
    n_group,
    topk_group,
    topk_method,
    scoring_func: isV2
      ? fields.choice("scoring_func", ["softmax"], "softmax")
      : fields.choice("scoring_func", ["sigmoid"], "sigmoid"),
    norm_topk_prob: fields.boolean("norm_topk_prob", isV2 ? false : undefined),
    routed_scaling_factor: fields.number("routed_scaling_factor", {
      min: 1e-6,
      max: 1e6,
      fallback: isV2 ? 1 : undefined,
    }),
  };
}

/**
 * What happens to the weights of the chosen experts: divided by their sum plus
 * 1e-20 if `normalize`, then multiplied by `scale`. In V2 a normalized weight
 * is not scaled; from V3 on it is.
 */
export function routerScaling(
  config: ModelConfig,
): { normalize: boolean; scale: number } {
  const normalize = config.norm_topk_prob && config.num_experts_per_tok > 1;
  const unscaled = normalize && config.model_type === "deepseek_v2";
  return { normalize, scale: unscaled ? 1 : config.routed_scaling_factor };
}
