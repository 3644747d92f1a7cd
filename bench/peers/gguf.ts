/**
 * Writes GGUF files of a shape with random weights, for llama.cpp to run: values do not change its
 * speed, shapes and types do. The layout is what its converter writes for DeepSeek-V2.
 *
 * @module
 */
import type { ModelConfig } from "../../src/model/config.ts";

/** Types of weights, by the name that moela's have. */
export type GgufWeights = "int8" | "int4" | "bf16";

/** W_UK and W_UV as two tensors, as today's converter writes them, or as one, as earlier ones did. */
export type GgufLayout = "split" | "kv_b";

/** Numbers of a type: `ggml_type`, `llama_ftype`, elements and bytes of a block. */
interface BlockType {
  id: number;
  file: number;
  elements: number;
  bytes: number;
}

const F32: BlockType = { id: 0, file: 0, elements: 1, bytes: 4 };
const TYPES: Record<GgufWeights, BlockType> = {
  int8: { id: 8, file: 7, elements: 32, bytes: 34 },
  int4: { id: 2, file: 2, elements: 32, bytes: 18 },
  bf16: { id: 30, file: 32, elements: 1, bytes: 2 },
};

/** What the types are called there. */
export const GGUF_NAMES: Record<GgufWeights, string> = {
  int8: "Q8_0",
  int4: "Q4_0",
  bf16: "BF16",
};

interface Tensor {
  name: string;
  /** Fastest first. */
  shape: number[];
  type: BlockType;
  fill: "ones" | "random";
}

const product = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);
const tensorBytes = ({ shape, type }: Tensor) =>
  product(shape) / type.elements * type.bytes;
const ALIGNMENT = 32;
const aligned = (n: number) => Math.ceil(n / ALIGNMENT) * ALIGNMENT;

/** The tensors of a config, in the order of the layers. */
function tensorsOf(
  c: ModelConfig,
  type: BlockType,
  layout: GgufLayout,
): Tensor[] {
  const tensors: Tensor[] = [];
  const add = (name: string, ...shape: number[]) =>
    tensors.push({ name: `${name}.weight`, shape, type, fill: "random" });
  const exact = (name: string, fill: Tensor["fill"], ...shape: number[]) =>
    tensors.push({ name: `${name}.weight`, shape, type: F32, fill });
  const d = c.hidden_size, heads = c.num_attention_heads, r = c.kv_lora_rank;
  add("token_embd", d, c.vocab_size);
  exact("output_norm", "ones", d);
  add("output", d, c.vocab_size);
  for (let i = 0; i < c.num_hidden_layers; i++) {
    const layer = (name: string) => `blk.${i}.${name}`;
    exact(layer("attn_norm"), "ones", d);
    add(layer("attn_q"), d, heads * (c.qk_nope_head_dim + c.qk_rope_head_dim));
    add(layer("attn_kv_a_mqa"), d, r + c.qk_rope_head_dim);
    exact(layer("attn_kv_a_norm"), "ones", r);
    if (layout === "split") {
      add(layer("attn_k_b"), c.qk_nope_head_dim, r, heads);
      add(layer("attn_v_b"), r, c.v_head_dim, heads);
    } else {
      add(layer("attn_kv_b"), r, heads * (c.qk_nope_head_dim + c.v_head_dim));
    }
    add(layer("attn_output"), heads * c.v_head_dim, d);
    exact(layer("ffn_norm"), "ones", d);
    const mlp = (suffix: string, width: number, ...experts: number[]) => {
      add(layer(`ffn_gate${suffix}`), d, width, ...experts);
      add(layer(`ffn_up${suffix}`), d, width, ...experts);
      add(layer(`ffn_down${suffix}`), width, d, ...experts);
    };
    if (i < c.first_k_dense_replace) {
      mlp("", c.intermediate_size);
    } else {
      const width = c.moe_intermediate_size;
      exact(layer("ffn_gate_inp"), "random", d, c.n_routed_experts);
      mlp("_exps", width, c.n_routed_experts);
      mlp("_shexp", width * c.n_shared_experts);
    }
  }
  return tensors;
}

/** Little-endian numbers and strings, one after the other. */
class Bytes {
  #parts: Uint8Array[] = [];
  #text = new TextEncoder();

  #number(bytes: number, set: (view: DataView) => void): this {
    const part = new Uint8Array(bytes);
    set(new DataView(part.buffer));
    this.#parts.push(part);
    return this;
  }
  u32 = (n: number) => this.#number(4, (view) => view.setUint32(0, n, true));
  u64 = (n: number) =>
    this.#number(8, (view) => view.setBigUint64(0, BigInt(n), true));
  f32 = (n: number) => this.#number(4, (view) => view.setFloat32(0, n, true));
  u8 = (n: number) => this.#number(1, (view) => view.setUint8(0, n));
  string(text: string): this {
    const encoded = this.#text.encode(text);
    this.u64(encoded.length);
    this.#parts.push(encoded);
    return this;
  }
  async blob(): Promise<Uint8Array> {
    return await new Blob(this.#parts as BlobPart[]).bytes();
  }
}

/** The characters that stand for bytes in byte-level BPE. */
function byteCharacters(): string[] {
  const printable = (b: number) =>
    (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  let others = 256;
  return Array.from(
    { length: 256 },
    (_, b) => String.fromCodePoint(printable(b) ? b : others++),
  );
}

/** A vocabulary that is no more than complete: bytes, some merges, names for the rest. */
function vocabulary(size: number) {
  const merges = [..."abcdefghij"].flatMap((a) =>
    [..."klmnopqrst"].map((b) => `${a} ${b}`)
  );
  const tokens = [
    ...byteCharacters(),
    ...merges.map((merge) => merge.replace(" ", "")),
  ];
  while (tokens.length < size) tokens.push(`<${tokens.length}>`);
  return { tokens, merges };
}

const U8 = 7, U32 = 4, I32 = 5, F32_VALUE = 6, STRING = 8, ARRAY = 9;

/** The metadata: how many entries, and their bytes. */
function metadata(
  c: ModelConfig,
  weights: GgufWeights,
  layout: GgufLayout,
): [number, Bytes] {
  const out = new Bytes();
  let count = 0;
  const key = (name: string, type: number) => {
    count++;
    return out.string(name).u32(type);
  };
  const u32 = (name: string, value: number) => key(name, U32).u32(value);
  const f32 = (name: string, value: number) => key(name, F32_VALUE).f32(value);
  const bool = (name: string, value: boolean) => key(name, U8).u8(+value);
  const text = (name: string, value: string) => key(name, STRING).string(value);
  const strings = (name: string, values: readonly string[]) => {
    key(name, ARRAY).u32(STRING).u64(values.length);
    for (const value of values) out.string(value);
  };
  const p = "deepseek2";
  text("general.architecture", p);
  text("general.name", "random weights");
  u32("general.file_type", TYPES[weights].file);
  u32("general.quantization_version", 2);
  u32(`${p}.block_count`, c.num_hidden_layers);
  u32(`${p}.context_length`, c.max_position_embeddings);
  u32(`${p}.embedding_length`, c.hidden_size);
  u32(`${p}.feed_forward_length`, c.intermediate_size);
  u32(`${p}.attention.head_count`, c.num_attention_heads);
  const split = layout === "split";
  const qkHead = c.qk_nope_head_dim + c.qk_rope_head_dim;
  u32(`${p}.attention.head_count_kv`, split ? 1 : c.num_attention_heads);
  f32(`${p}.attention.layer_norm_rms_epsilon`, c.rms_norm_eps);
  f32(`${p}.rope.freq_base`, c.rope_theta);
  // Otherwise the number of layers decides whether queries go through a low rank.
  u32(`${p}.attention.q_lora_rank`, 0);
  u32(`${p}.attention.kv_lora_rank`, c.kv_lora_rank);
  u32(
    `${p}.attention.key_length`,
    split ? c.kv_lora_rank + c.qk_rope_head_dim : qkHead,
  );
  u32(
    `${p}.attention.value_length`,
    split ? c.kv_lora_rank : c.v_head_dim,
  );
  if (split) {
    u32(`${p}.attention.key_length_mla`, qkHead);
    u32(`${p}.attention.value_length_mla`, c.v_head_dim);
  }
  u32(`${p}.expert_count`, c.n_routed_experts);
  u32(`${p}.expert_used_count`, c.num_experts_per_tok);
  u32(`${p}.expert_feed_forward_length`, c.moe_intermediate_size);
  u32(`${p}.expert_shared_count`, c.n_shared_experts);
  f32(`${p}.expert_weights_scale`, 1);
  bool(`${p}.expert_weights_norm`, false);
  u32(`${p}.expert_gating_func`, 1);
  u32(`${p}.leading_dense_block_count`, c.first_k_dense_replace);
  u32(`${p}.vocab_size`, c.vocab_size);
  u32(`${p}.rope.dimension_count`, c.qk_rope_head_dim);
  text(`${p}.rope.scaling.type`, "yarn");
  f32(`${p}.rope.scaling.factor`, 40);
  u32(`${p}.rope.scaling.original_context_length`, 4096);
  f32(`${p}.rope.scaling.yarn_log_multiplier`, 0.0707);
  const { tokens, merges } = vocabulary(c.vocab_size);
  text("tokenizer.ggml.model", "gpt2");
  text("tokenizer.ggml.pre", "deepseek-llm");
  strings("tokenizer.ggml.tokens", tokens);
  key("tokenizer.ggml.token_type", ARRAY).u32(I32).u64(tokens.length);
  // The last two are control tokens.
  tokens.forEach((_, i) => out.u32(i < tokens.length - 2 ? 1 : 3));
  strings("tokenizer.ggml.merges", merges);
  u32("tokenizer.ggml.bos_token_id", tokens.length - 2);
  u32("tokenizer.ggml.eos_token_id", tokens.length - 1);
  bool("tokenizer.ggml.add_bos_token", false);
  bool("tokenizer.ggml.add_eos_token", false);
  return [count, out];
}

/** Blocks of random weights with a standard deviation of about 1 / √fan_in, to be repeated. */
function randomBlocks(type: BlockType, fanIn: number): Uint8Array {
  // A number of blocks that no dimension divides.
  const blocks = type.elements === 1 ? 4_000_037 : 500_009;
  const bytes = new Uint8Array(blocks * type.bytes);
  const view = new DataView(bytes.buffer);
  let state = fanIn;
  const random = () => {
    state = Math.imul(state, 1664525) + 1013904223 >>> 0;
    return state / 2 ** 32;
  };
  const uniform = Math.sqrt(12 / fanIn);
  for (let i = 0; i < blocks; i++) {
    const at = i * type.bytes;
    if (type === F32) {
      view.setFloat32(at, (random() - 0.5) * uniform, true);
    } else if (type === TYPES.bf16) {
      view.setFloat32(0, (random() - 0.5) * uniform, true);
      view.setUint16(at, view.getUint16(2, true), true);
    } else {
      const levels = type === TYPES.int8 ? 256 : 16;
      const scale = uniform / levels * (random() < 0.5 ? -1 : 1);
      view.setUint16(at, halfBits(scale * (0.8 + 0.4 * random())), true);
      for (let j = 2; j < type.bytes; j++) bytes[at + j] = random() * 256;
    }
  }
  return bytes;
}

/** A normal f16, cut off. */
function halfBits(value: number): number {
  const view = new DataView(new ArrayBuffer(4));
  view.setFloat32(0, value);
  const bits = view.getUint32(0);
  const exponent = (bits >>> 23 & 255) - 112;
  return bits >>> 16 & 0x8000 | exponent << 10 | bits >>> 13 & 1023;
}

async function writeAll(file: Deno.FsFile, bytes: Uint8Array) {
  for (let at = 0; at < bytes.length;) {
    at += await file.write(bytes.subarray(at));
  }
}

/** Writes the file; returns its bytes. */
export async function writeGguf(
  path: string,
  config: ModelConfig,
  weights: GgufWeights,
  layout: GgufLayout = "split",
): Promise<number> {
  const tensors = tensorsOf(config, TYPES[weights], layout);
  const [entries, values] = metadata(config, weights, layout);
  const header = new Bytes().u32(0x46554747).u32(3).u64(tensors.length)
    .u64(entries);
  const infos = new Bytes();
  let offset = 0;
  for (const tensor of tensors) {
    infos.string(tensor.name).u32(tensor.shape.length);
    for (const n of tensor.shape) infos.u64(n);
    infos.u32(tensor.type.id).u64(offset);
    offset += aligned(tensorBytes(tensor));
  }
  using file = await Deno.open(path, {
    write: true,
    create: true,
    truncate: true,
  });
  let head = 0;
  for (const part of [header, values, infos]) {
    const bytes = await part.blob();
    await writeAll(file, bytes);
    head += bytes.length;
  }
  await writeAll(file, new Uint8Array(aligned(head) - head));
  const pools = new Map<string, Uint8Array>();
  for (const tensor of tensors) {
    const { type, shape, fill } = tensor;
    const bytes = tensorBytes(tensor);
    const padding = new Uint8Array(aligned(bytes) - bytes);
    if (fill === "ones") {
      const ones = new Float32Array(bytes / 4).fill(1);
      await writeAll(file, new Uint8Array(ones.buffer));
    } else {
      const key = `${type.id} ${shape[0]}`;
      let pool = pools.get(key);
      if (!pool) pools.set(key, pool = randomBlocks(type, shape[0]));
      for (let left = bytes; left > 0; left -= pool.length) {
        await writeAll(file, pool.subarray(0, Math.min(left, pool.length)));
      }
    }
    await writeAll(file, padding);
  }
  // Not while something is measured.
  await file.sync();
  return aligned(head) + offset;
}
