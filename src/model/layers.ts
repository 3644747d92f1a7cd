/**
 * The layer stack, written as the paper writes it: each function records a few operations.
 * DeepSeek-V2 (arXiv 2405.04434), sections 2.1 (multi-head latent attention) and 2.2 (DeepSeekMoE);
 * DeepSeek-V3 differs in its router alone.
 */
import {
  ProgramRecorder,
  type RouterShape,
  type ValueRef,
  type WeightRef,
} from "../../ffi/mod.ts";
import { LATENT_NORM_EPS, type ModelConfig } from "./config.ts";
import { routerScaling } from "./router_config.ts";
import { ropeNumbers } from "./rope.ts";

/** Queries: through a low rank, or directly (V2-Lite). */
export type QueryWeights =
  | { qA: WeightRef; qANorm: WeightRef; qB: WeightRef }
  | { q: WeightRef };

/** A SwiGLU block: one matrix each, or one an expert. */
export interface MlpWeights {
  gate: WeightRef;
  up: WeightRef;
  down: WeightRef;
}

/** DeepSeekMoE: a router, the routed experts, and the shared ones as one block. */
export interface MoeWeights {
  router: WeightRef;
  bias?: WeightRef;
  experts: MlpWeights;
  shared?: MlpWeights;
}

/** One layer. */
export interface LayerWeights {
  inputNorm: WeightRef;
  query: QueryWeights;
  kvA: WeightRef;
  kvANorm: WeightRef;
  kvB: WeightRef;
  output: WeightRef;
  postNorm: WeightRef;
  mlp: { dense: MlpWeights } | { moe: MoeWeights };
}

/** All weights of a model. */
export interface ModelWeights {
  embed: WeightRef;
  layers: LayerWeights[];
  norm: WeightRef;
  head: WeightRef;
  /** f64 `[qk_rope_head_dim / 2]` */
  inverseFrequencies: WeightRef;
}

/** A recorded model and the values that tests look at. */
export interface RecordedModel {
  program: ProgramRecorder;
  /** The residual stream before each layer, and after the last. */
  hidden: ValueRef[];
  /** By layer; absent in dense layers. */
  routers: ({ experts: ValueRef; weights: ValueRef } | undefined)[];
  logits: ValueRef;
}

/** How a config's router chooses. */
export function routerShape(config: ModelConfig): RouterShape {
  const greedy = config.topk_method === "greedy";
  const { normalize, scale } = routerScaling(config);
  return {
    n_routed_experts: config.n_routed_experts,
    num_experts_per_tok: config.num_experts_per_tok,
    n_group: greedy ? 1 : config.n_group,
    topk_group: greedy ? 1 : config.topk_group,
    scoring: config.scoring_func,
    groupScore: greedy
      ? "none"
      : config.topk_method === "group_limited_greedy"
      ? "max"
      : "top2_sum",
    normalise: normalize,
    factor: scale,
  };
}

/**
 * Records the model.
 *
 * @param paths "absorbed": the decode program; "both": the mixed one
 * @param keepAll keep every value, for tests
 */
export function recordModel(
  config: ModelConfig,
  weights: ModelWeights,
  paths: "absorbed" | "both",
  keepAll: boolean = false,
): RecordedModel {
  const p = new ProgramRecorder(keepAll);
  const { cosSinMultiplier, softmaxScale } = ropeNumbers(config);
  const table = p.ropeTable(weights.inverseFrequencies, cosSinMultiplier);
  const hidden = [p.embed(weights.embed)];
  const routers: RecordedModel["routers"] = [];
  weights.layers.forEach((w, layer) => {
    const h = hidden[layer];
    const x = p.rmsNorm(h, w.inputNorm, config.rms_norm_eps);
    const attended = attention(x, w, layer);
    const middle = p.linear(attended, w.output, h);
    const y = p.rmsNorm(middle, w.postNorm, config.rms_norm_eps);
    if ("dense" in w.mlp) {
      const { gate, up, down } = w.mlp.dense;
      hidden.push(p.linear(p.gateUp(y, gate, up), down, middle));
      routers.push(undefined);
    } else {
      const { output, router } = mixture(y, w.mlp.moe, middle);
      hidden.push(output);
      routers.push(router);
    }
  });
  const rows = p.gather(hidden[hidden.length - 1]);
  const normed = p.rmsNorm(rows, weights.norm, config.rms_norm_eps, "logits");
  const logits = p.linear(normed, weights.head, undefined, "logits");
  p.outputs(logits);
  return { program: p, hidden, routers, logits };

  // Equations 9-13 and 14-19: a low-rank joint compression of keys and values, decoupled rotary
  // keys. Only the normed latent and the rotated shared key are cached.
  function attention(x: ValueRef, w: LayerWeights, layer: number): ValueRef {
    const { num_attention_heads: heads, qk_nope_head_dim } = config;
    // Side by side, so that a device can do both at once.
    const first = p.linear(x, "q" in w.query ? w.query.q : w.query.qA);
    const latent = p.linear(x, w.kvA);
    const q = "q" in w.query ? first : p.linear(
      p.rmsNorm(first, w.query.qANorm, LATENT_NORM_EPS),
      w.query.qB,
    );
    p.rotary(q, table, heads, qk_nope_head_dim);
    p.cacheWrite(latent, table, w.kvANorm, layer, LATENT_NORM_EPS);
    const out = p.value(heads * config.v_head_dim);
    p.mlaAbsorbed(q, w.kvB, layer, config, softmaxScale, out);
    if (paths === "both") {
      p.mlaPrefill(q, w.kvB, layer, config, softmaxScale, out);
    }
    return out;
  }

  // Equations 20-22: routed experts weighted by the gate, plus the shared ones.
  function mixture(x: ValueRef, w: MoeWeights, residual: ValueRef) {
    const shape = routerShape(config);
    const router = p.router(p.linear(x, w.router), w.bias, shape);
    const plan = p.moePlan(router.experts, shape.n_routed_experts);
    const { gate, up, down } = w.experts;
    const routed = p.expertDown(p.gateUp(x, gate, up, plan), down, plan);
    const shared = w.shared &&
      p.linear(p.gateUp(x, w.shared.gate, w.shared.up), w.shared.down);
    const output = p.combine(routed, router.weights, shared, residual);
    return { output, router };
  }
}
