/** The gate of V2 (softmax) and of V3 and its kin (sigmoid with bias). */

/** The router's fields of `config.json`. */
export interface RouterConfig {
  model_type: string;
  num_experts_per_tok: number;
  n_group?: number | null;
  topk_group?: number | null;
  topk_method?: string;
  norm_topk_prob?: boolean;
  routed_scaling_factor: number;
}

/** Indices of the `count` largest, largest first; ties go to the lowest. */
function largest(values: ArrayLike<number>, count: number): number[] {
  return Array.from(values, (_, i) => i)
    .sort((a, b) => values[b] - values[a] || a - b)
    .slice(0, count);
}

/** The groups' members: contiguous, equally many. */
function groups(values: Float64Array, count: number): Float64Array[] {
  const size = values.length / count;
  return Array.from(
    { length: count },
    (_, g) => values.subarray(g * size, (g + 1) * size),
  );
}

/** Puts `filler` in place of the values outside the best groups. */
function keepGroups(
  values: Float64Array,
  config: RouterConfig,
  score: (group: Float64Array) => number,
  filler: number,
): Float64Array {
  const parts = groups(values, config.n_group ?? 1);
  const kept = largest(parts.map(score), config.topk_group ?? 1);
  const size = values.length / parts.length;
  return values.map((value, i) =>
    kept.includes(Math.floor(i / size)) ? value : filler
  );
}

function softmax(logits: Float64Array): Float64Array {
  const best = Math.max(...logits);
  const exps = logits.map((logit) => Math.exp(logit - best));
  const sum = exps.reduce((a, b) => a + b, 0);
  return exps.map((value) => value / sum);
}

/** The experts of one token, best first, and what their outputs count. */
export function route(
  config: RouterConfig,
  logits: Float64Array,
  bias: Float64Array | undefined,
): { expert: number; weight: number }[] {
  const isV2 = config.model_type === "deepseek_v2";
  const k = config.num_experts_per_tok;
  let scores: Float64Array;
  let experts: number[];
  if (isV2) {
    scores = softmax(logits);
    const eligible = config.topk_method === "group_limited_greedy"
      ? keepGroups(scores, config, (group) => Math.max(...group), 0)
      : scores;
    experts = largest(eligible, k);
  } else {
    if (bias === undefined) throw new Error("this gate needs its bias");
    scores = logits.map((logit) => 1 / (1 + Math.exp(-logit)));
    const biased = scores.map((score, i) => score + bias[i]);
    const bestTwo = (group: Float64Array) => {
      const [first, second] = largest(group, 2);
      return group[first] + group[second];
    };
    experts = largest(keepGroups(biased, config, bestTwo, -Infinity), k);
  }
  let weights = experts.map((expert) => scores[expert]);
  const normalized = k > 1 && config.norm_topk_prob === true;
  if (normalized) {
    const sum = weights.reduce((a, b) => a + b, 0) + 1e-20;
    weights = weights.map((weight) => weight / sum);
  }
  // V2 scales only what it does not normalize; V3 always scales.
  if (!isV2 || !normalized) {
    weights = weights.map((weight) => weight * config.routed_scaling_factor);
  }
  return experts.map((expert, i) => ({ expert, weight: weights[i] }));
}
