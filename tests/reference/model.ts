/**
 * The DeepSeek-V2 family in float64, plainly: keys and values are projected up
 * for the whole sequence, every token is computed anew. Written from the
 * definition (arXiv 2405.04434, appendix C, and the original
 * modeling_deepseek.py), and apart from `src` on purpose.
 */

import { route, type RouterConfig } from "./router.ts";
import {
  getMscale,
  inverseFrequencies,
  rotate,
  type YarnConfig,
} from "./rope.ts";
import { type Matrix, readWeights } from "./weights.ts";

/** The fields of `config.json` that the arithmetic needs. */
export interface ReferenceConfig extends RouterConfig {
  model_type: string;
  vocab_size: number;
  hidden_size: number;
  num_hidden_layers: number;
  num_attention_heads: number;
  q_lora_rank: number | null;
  kv_lora_rank: number;
  qk_nope_head_dim: number;
  qk_rope_head_dim: number;
  v_head_dim: number;
  n_shared_experts: number | null;
  first_k_dense_replace: number;
  moe_layer_freq?: number;
  rms_norm_eps: number;
  rope_theta: number;
  rope_scaling: YarnConfig | null;
  tie_word_embeddings?: boolean;
}

/** One layer's choices: `[T, num_experts_per_tok]`, row-major, best first. */
export interface ReferenceRouting {
  experts: number[];
  weights: number[];
}

/** What a forward pass gives. */
export interface ReferenceOutput {
  /** `[T, vocab_size]`, row-major. */
  logits: Float64Array;
  /** Before each layer and after the last, each `[T, hidden_size]`. */
  hiddenStates: Float64Array[];
  /** By layer; dense layers have none. */
  routing: Map<number, ReferenceRouting>;
}

/** y = W x */
function multiply(weight: Matrix, x: Float64Array): Float64Array {
  const { rows, columns, data } = weight;
  if (x.length !== columns) throw new Error(`${x.length} against ${columns}`);
  const y = new Float64Array(rows);
  for (let row = 0; row < rows; row++) {
    let sum = 0;
    for (let i = 0; i < columns; i++) sum += data[row * columns + i] * x[i];
    y[row] = sum;
  }
  return y;
}

function rmsNorm(weight: Matrix, x: Float64Array, eps: number): Float64Array {
  let squares = 0;
  for (const value of x) squares += value * value;
  const scale = 1 / Math.sqrt(squares / x.length + eps);
  return x.map((value, i) => weight.data[i] * value * scale);
}

function addTo(x: Float64Array, y: Float64Array, factor = 1): void {
  for (let i = 0; i < x.length; i++) x[i] += factor * y[i];
}

function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

function concat(rows: readonly Float64Array[]): Float64Array {
  const all = new Float64Array(rows.length * rows[0].length);
  rows.forEach((row, i) => all.set(row, i * row.length));
  return all;
}

/** A whole checkpoint, ready to compute. */
export class ReferenceModel {
  readonly config: ReferenceConfig;
  readonly #weights: Map<string, Matrix>;

  private constructor(config: ReferenceConfig, weights: Map<string, Matrix>) {
    this.config = config;
    this.#weights = weights;
  }

  /** Reads a trusted checkpoint folder. */
  static async load(folder: string): Promise<ReferenceModel> {
    const config: ReferenceConfig = JSON.parse(
      await Deno.readTextFile(`${folder}/config.json`),
    );
    return new ReferenceModel(config, await readWeights(folder));
  }

  #weight(name: string): Matrix {
    const matrix = this.#weights.get(`${name}.weight`);
    if (matrix === undefined) throw new Error(`no tensor ${name}.weight`);
    return matrix;
  }

  /** All logits, hidden states and choices of one sequence from position 0. */
  forward(tokens: readonly number[]): ReferenceOutput {
    const { config } = this;
    const eps = config.rms_norm_eps;
    const embedding = this.#weight("model.embed_tokens");
    const size = config.hidden_size;
    const h = tokens.map((id) =>
      embedding.data.slice(id * size, (id + 1) * size)
    );
    const hiddenStates = [concat(h)];
    const routing = new Map<number, ReferenceRouting>();
    for (let layer = 0; layer < config.num_hidden_layers; layer++) {
      const prefix = `model.layers.${layer}`;
      const before = this.#weight(`${prefix}.input_layernorm`);
      const attention = this.#attention(
        `${prefix}.self_attn`,
        h.map((x) => rmsNorm(before, x, eps)),
      );
      attention.forEach((y, t) => addTo(h[t], y));

      const between = this.#weight(`${prefix}.post_attention_layernorm`);
      const isMoe = layer >= config.first_k_dense_replace &&
        layer % (config.moe_layer_freq ?? 1) === 0;
      const choices: ReferenceRouting = { experts: [], weights: [] };
      for (const x of h) {
        const normed = rmsNorm(between, x, eps);
        addTo(
          x,
          isMoe
            ? this.#moe(`${prefix}.mlp`, normed, choices)
            : this.#mlp(`${prefix}.mlp`, normed),
        );
      }
      if (isMoe) routing.set(layer, choices);
      hiddenStates.push(concat(h));
    }
    const norm = this.#weight("model.norm");
    const head = config.tie_word_embeddings
      ? embedding
      : this.#weight("lm_head");
    const logits = h.map((x) => multiply(head, rmsNorm(norm, x, eps)));
    return { logits: concat(logits), hiddenStates, routing };
  }

  /** Multi-head latent attention over the whole sequence, causal. */
  #attention(prefix: string, inputs: readonly Float64Array[]): Float64Array[] {
    const { config } = this;
    const heads = config.num_attention_heads;
    const rank = config.kv_lora_rank;
    const nope = config.qk_nope_head_dim;
    const rope = config.qk_rope_head_dim;
    const valueDim = config.v_head_dim;
    const latentEps = 1e-6; // the published code passes no eps to these norms

    const yarn = config.rope_scaling;
    const frequencies = inverseFrequencies(rope, config.rope_theta, yarn);
    let multiplier = 1;
    let scale = 1 / Math.sqrt(nope + rope);
    if (yarn !== null) {
      const all = yarn.mscale_all_dim ?? 0;
      multiplier = getMscale(yarn.factor, yarn.mscale ?? 1) /
        getMscale(yarn.factor, all);
      if (all) scale *= getMscale(yarn.factor, all) ** 2;
    }

    const queries = inputs.map((x, position) => {
      let q: Float64Array;
      if (config.q_lora_rank === null) {
        q = multiply(this.#weight(`${prefix}.q_proj`), x);
      } else {
        const down = multiply(this.#weight(`${prefix}.q_a_proj`), x);
        const norm = this.#weight(`${prefix}.q_a_layernorm`);
        q = multiply(
          this.#weight(`${prefix}.q_b_proj`),
          rmsNorm(norm, down, latentEps),
        );
      }
      for (let head = 0; head < heads; head++) {
        const end = (head + 1) * (nope + rope);
        rotate(q.subarray(end - rope, end), position, frequencies, multiplier);
      }
      return q;
    });

    const keysAndValues = inputs.map((x, position) => {
      const down = multiply(this.#weight(`${prefix}.kv_a_proj_with_mqa`), x);
      const norm = this.#weight(`${prefix}.kv_a_layernorm`);
      const latent = rmsNorm(norm, down.slice(0, rank), latentEps);
      const sharedKey = down.slice(rank);
      rotate(sharedKey, position, frequencies, multiplier);
      const up = multiply(this.#weight(`${prefix}.kv_b_proj`), latent);
      return { up, sharedKey };
    });

    const output = this.#weight(`${prefix}.o_proj`);
    return queries.map((q, position) => {
      const mixed = new Float64Array(heads * valueDim);
      for (let head = 0; head < heads; head++) {
        const start = head * (nope + rope);
        const qNope = q.subarray(start, start + nope);
        const qRope = q.subarray(start + nope, start + nope + rope);
        const seen = keysAndValues.slice(0, position + 1);
        const scores = seen.map(({ up, sharedKey }) => {
          const kvStart = head * (nope + valueDim);
          const kNope = up.subarray(kvStart, kvStart + nope);
          return scale * (dot(qNope, kNope) + dot(qRope, sharedKey));
        });
        const best = Math.max(...scores);
        const exps = scores.map((score) => Math.exp(score - best));
        const sum = exps.reduce((a, b) => a + b, 0);
        const target = mixed.subarray(head * valueDim, (head + 1) * valueDim);
        seen.forEach(({ up }, j) => {
          const vStart = head * (nope + valueDim) + nope;
          addTo(target, up.subarray(vStart, vStart + valueDim), exps[j] / sum);
        });
      }
      return multiply(output, mixed);
    });
  }

  /** down(silu(gate x) · up x) */
  #mlp(prefix: string, x: Float64Array): Float64Array {
    const gate = multiply(this.#weight(`${prefix}.gate_proj`), x);
    const up = multiply(this.#weight(`${prefix}.up_proj`), x);
    const inner = gate.map((g, i) => g / (1 + Math.exp(-g)) * up[i]);
    return multiply(this.#weight(`${prefix}.down_proj`), inner);
  }

  #moe(
    prefix: string,
    x: Float64Array,
    choices: ReferenceRouting,
  ): Float64Array {
    const logits = multiply(this.#weight(`${prefix}.gate`), x);
    const bias = this.#weights.get(`${prefix}.gate.e_score_correction_bias`);
    const chosen = route(this.config, logits, bias?.data);
    const y = new Float64Array(x.length);
    for (const { expert, weight } of chosen) {
      choices.experts.push(expert);
      choices.weights.push(weight);
      addTo(y, this.#mlp(`${prefix}.experts.${expert}`, x), weight);
    }
    if (this.config.n_shared_experts) {
      addTo(y, this.#mlp(`${prefix}.shared_experts`, x));
    }
    return y;
  }
}
