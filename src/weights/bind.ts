import type {
  NativeModel,
  NativeWeight,
  NativeWeightPart,
  WeightDType,
  WeightRef,
} from "../../ffi/mod.ts";
import { CheckpointError } from "../errors.ts";
import { isMoeLayer, type ModelConfig } from "../model/config.ts";
import type {
  LayerWeights,
  MlpWeights,
  ModelWeights,
  MoeWeights,
} from "../model/layers.ts";
import { ropeNumbers } from "../model/rope.ts";
import type { Checkpoint } from "./checkpoint.ts";
import { scaleSuffix } from "./expect.ts";
import { generatedSpread, tensorKey } from "./generated.ts";

/** What `LoadOptions.weights` may ask for. */
export type WeightsType = "auto" | WeightDType;

/** Where weights come from: a checkpoint, or the generator's numbers. */
export interface WeightSource {
  /** A weight of several tensors of one shape `[rows, cols]`, without the type wanted. */
  find(
    names: readonly string[],
    rows: number,
    cols: number,
  ): Omit<NativeWeight, "dtype">;
  has(name: string): boolean;
}

/** The types of a safetensors file under the names that the library has. */
export const STORED: Record<string, NativeWeight["stored"]> = {
  F32: "f32",
  BF16: "bf16",
  F16: "f16",
  F8_E4M3: "fp8",
  I8: "int8",
  U8: "int4",
};

/** The tensors of a checkpoint; its files are mapped now. */
export function checkpointSource(
  native: NativeModel,
  checkpoint: Checkpoint,
): WeightSource {
  const files = checkpoint.files.map(({ path }) => native.addFile(path));
  const tensor = (name: string) => {
    const found = checkpoint.tensors.get(name);
    if (!found) {
      throw new CheckpointError(
        `${checkpoint.path}: tensor ${name} is missing`,
      );
    }
    return found;
  };
  return {
    has: (name) => checkpoint.tensors.has(name),
    find(names, rows, cols) {
      const types = new Set(names.map((name) => tensor(name).dtype));
      const [type] = types;
      if (types.size > 1) {
        throw new CheckpointError(
          `${checkpoint.path}: ${names[0]} and its like are stored as ${
            [...types].join(" and ")
          }, and must be of one type`,
        );
      }
      const parts = names.map((name): NativeWeightPart => {
        const { file, begin } = tensor(name);
        const part = { file: files[file], offset: begin };
        const suffix = scaleSuffix(type);
        if (suffix === undefined) return part;
        const scale = tensor(name + suffix);
        return {
          ...part,
          scaleFile: files[scale.file],
          scaleOffset: scale.begin,
        };
      });
      return { stored: STORED[type], rows, cols, parts };
    },
  };
}

/** Seeded random tensors of the shapes that a checkpoint of this config has. */
export function generatedSource(
  config: ModelConfig,
  seed: number,
  stored: "f32" | "bf16",
): WeightSource {
  return {
    has: (name) =>
      config.topk_method === "noaux_tc" || !name.endsWith("correction_bias"),
    find(names, rows, cols) {
      const shape = rows === 1 ? [cols] : [rows, cols];
      return {
        stored: names[0].endsWith("correction_bias") ? "f32" : stored,
        rows,
        cols,
        parts: names.map(tensorKey),
        seed: BigInt(seed),
        ...generatedSpread(names[0], shape, config),
      };
    },
  };
}

/** How binding goes on, and how it is stopped. */
export interface BindOptions {
  weights: WeightsType;
  control: Int32Array<SharedArrayBuffer>;
  /** Told after each weight how many bytes it has, as it is stored, and whether it was converted. */
  onBytes?: (bytes: number, converted: boolean) => Promise<void>;
}

/** Bytes of an element by stored type. */
const STORED_BYTES = {
  f32: 4,
  bf16: 2,
  f16: 2,
  fp8: 1,
  int8: 1,
  int4: 0.5,
};

/** The type that a weight runs in; there are no kernels for f16. */
export function running(
  stored: NativeWeight["stored"],
  wanted: WeightsType,
): WeightDType {
  if (wanted !== "auto") return wanted;
  return stored === "f16" ? "f32" : stored;
}

/**
 * The type of the projection `name` when `weights` is wanted of all. Some weigh more in the result than
 * in what a token reads, and keep more bits:
 *
 * - kv_a_proj_with_mqa and kv_b_proj: every key and value of every head comes through them. They are
 *   3.6 % of what a token of V2-Lite reads. In int4, kv_a_proj alone would raise the perplexity of nano by
 *   2 %, in fp8 by 0.25 %.
 * - lm_head in fp8: int8 takes eight bits, too, with a fourteenth of the squared error.
 *
 * A checkpoint stored in fp8 keeps what it has.
 */
export function projectionType(
  name: string,
  weights: WeightsType,
  stored: NativeWeight["stored"],
): WeightsType {
  const isLatent = /\.kv_(a_proj_with_mqa|b_proj)\.weight$/.test(name);
  if (weights === "int4") return isLatent ? "int8" : weights;
  if (weights !== "fp8" || stored === "fp8") return weights;
  return isLatent ? "bf16" : name === "lm_head.weight" ? "int8" : weights;
}

/** Gives every weight of the model to the library, tensor by tensor. */
export async function bindWeights(
  native: NativeModel,
  config: ModelConfig,
  source: WeightSource,
  options: BindOptions,
): Promise<ModelWeights> {
  const d = config.hidden_size;
  const r = config.kv_lora_rank;
  const heads = config.num_attention_heads;
  const qHead = config.qk_nope_head_dim + config.qk_rope_head_dim;
  const kvHead = config.qk_nope_head_dim + config.v_head_dim;

  async function bind(
    names: readonly string[],
    rows: number,
    cols: number,
    wanted: WeightsType,
  ): Promise<WeightRef> {
    const found = source.find(names, rows, cols);
    const dtype = running(found.stored, wanted);
    // A generated weight is made in the type that is asked of all, where that has no scales; another
    // one from what a file would have.
    const generated = typeof found.parts[0] === "bigint";
    const stored = generated && dtype === options.weights &&
        (dtype === "f32" || dtype === "bf16")
      ? dtype
      : found.stored;
    const weight = { ...found, stored, dtype };
    const ref = await native.addWeight(weight, options.control);
    const bytes = names.length * rows * cols * STORED_BYTES[stored];
    // What is widened although nobody asked for another type, the router, counts as read.
    const converted = stored !== dtype &&
      stored !== running(stored, options.weights);
    await options.onBytes?.(bytes, converted);
    return ref;
  }
  const matrix = (projection: string, rows: number, cols: number) => {
    const names = [`${projection}.weight`];
    const { stored } = source.find(names, rows, cols);
    const wanted = projectionType(names[0], options.weights, stored);
    return bind(names, rows, cols, wanted);
  };
  // Norms and the embedding stay as they are stored, whatever the type of the rest.
  const exact = (name: string, rows: number, cols: number) =>
    bind(
      [`${name}.weight`],
      rows,
      cols,
      options.weights === "f32" ? "f32" : "auto",
    );
  const experts = (
    prefix: string,
    part: string,
    rows: number,
    cols: number,
  ) =>
    bind(
      Array.from(
        { length: config.n_routed_experts },
        (_, e) => `${prefix}.experts.${e}.${part}.weight`,
      ),
      rows,
      cols,
      options.weights,
    );

  async function mlp(prefix: string, width: number): Promise<MlpWeights> {
    return {
      gate: await matrix(`${prefix}.gate_proj`, width, d),
      up: await matrix(`${prefix}.up_proj`, width, d),
      down: await matrix(`${prefix}.down_proj`, d, width),
    };
  }

  async function moe(prefix: string): Promise<MoeWeights> {
    const width = config.moe_intermediate_size;
    const bias = `${prefix}.gate.e_score_correction_bias`;
    const shared = config.n_shared_experts * width;
    const router = [`${prefix}.gate.weight`];
    return {
      // A bf16 weight would round the router's input on some devices, and so choose other experts.
      router: await bind(router, config.n_routed_experts, d, "f32"),
      bias: source.has(bias)
        ? await bind([bias], 1, config.n_routed_experts, "f32")
        : undefined,
      experts: {
        gate: await experts(prefix, "gate_proj", width, d),
        up: await experts(prefix, "up_proj", width, d),
        down: await experts(prefix, "down_proj", d, width),
      },
      shared: shared > 0
        ? await mlp(`${prefix}.shared_experts`, shared)
        : undefined,
    };
  }

  async function layer(i: number): Promise<LayerWeights> {
    const prefix = `model.layers.${i}`;
    const attn = `${prefix}.self_attn`;
    const rank = config.q_lora_rank;
    return {
      inputNorm: await exact(`${prefix}.input_layernorm`, 1, d),
      query: rank === null
        ? { q: await matrix(`${attn}.q_proj`, heads * qHead, d) }
        : {
          qA: await matrix(`${attn}.q_a_proj`, rank, d),
          qANorm: await exact(`${attn}.q_a_layernorm`, 1, rank),
          qB: await matrix(`${attn}.q_b_proj`, heads * qHead, rank),
        },
      kvA: await matrix(
        `${attn}.kv_a_proj_with_mqa`,
        r + config.qk_rope_head_dim,
        d,
      ),
      kvANorm: await exact(`${attn}.kv_a_layernorm`, 1, r),
      kvB: await matrix(`${attn}.kv_b_proj`, heads * kvHead, r),
      output: await matrix(`${attn}.o_proj`, d, heads * config.v_head_dim),
      postNorm: await exact(`${prefix}.post_attention_layernorm`, 1, d),
      mlp: isMoeLayer(config, i)
        ? { moe: await moe(`${prefix}.mlp`) }
        : { dense: await mlp(`${prefix}.mlp`, config.intermediate_size) },
    };
  }

  const embed = await exact("model.embed_tokens", config.vocab_size, d);
  const layers: LayerWeights[] = [];
  for (let i = 0; i < config.num_hidden_layers; i++) {
    layers.push(await layer(i));
  }
  return {
    embed,
    layers,
    norm: await exact("model.norm", 1, d),
    head: config.tie_word_embeddings
      ? embed
      : await matrix("lm_head", config.vocab_size, d),
    inverseFrequencies: native.addConstant(
      Float64Array.from(ropeNumbers(config).inverseFrequencies),
    ),
  };
}
