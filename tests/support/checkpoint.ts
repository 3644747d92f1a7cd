/** Small random checkpoints in the published layout. */

import { parseConfig } from "../../src/model/config.ts";
import {
  type ExpectedTensor,
  expectedTensors,
  FP8_BLOCK,
} from "../../src/weights/expect.ts";
import { Random } from "./numbers.ts";
import { type TestTensor, writeSafetensors } from "./safetensors.ts";

/** How `makeCheckpoint` writes. */
export interface MakeCheckpointOptions {
  /** Default 1. */
  seed?: number;
  /** Default "f32". In "fp8" the projections are; what is left is bf16. */
  dtype?: "f32" | "bf16" | "f16" | "fp8";
  /** Default 1: a single file without an index. */
  shards?: number;
  /** Adds a layer for multi-token prediction after the last one. */
  predictionLayer?: boolean;
}

/** Spread of a tensor's values that keeps activations near 1. */
function randomValues(
  { name, shape }: ExpectedTensor,
  random: Random,
): Float32Array {
  const count = shape.reduce((product, n) => product * n, 1);
  const values = new Float32Array(count);
  const columns = shape[shape.length - 1];
  for (let i = 0; i < count; i++) {
    const z = random.normal();
    if (name.endsWith("norm.weight")) values[i] = 1 + 0.1 * z;
    else if (name.endsWith("_bias")) values[i] = 0.1 * z;
    else if (name === "model.embed_tokens.weight") values[i] = z;
    else values[i] = z / Math.sqrt(columns);
  }
  return values;
}

/** Divides by the scale of each 128 × 128 block, which is its largest / 448. */
function quantize(
  values: Float32Array,
  [rows, columns]: readonly number[],
): { weight: TestTensor; scale: TestTensor } {
  const across = Math.ceil(columns / FP8_BLOCK);
  const down = Math.ceil(rows / FP8_BLOCK);
  const block = (i: number) =>
    Math.floor(i / columns / FP8_BLOCK) * across +
    Math.floor((i % columns) / FP8_BLOCK);
  const scales = new Float32Array(down * across);
  values.forEach((value, i) => {
    scales[block(i)] = Math.max(scales[block(i)], Math.abs(value) / 448);
  });
  const data = values.map((value, i) => value / scales[block(i)]);
  return {
    weight: { dtype: "F8_E4M3", shape: [rows, columns], data },
    scale: { dtype: "F32", shape: [down, across], data: scales },
  };
}

const DTYPES = { f32: "F32", bf16: "BF16", f16: "F16", fp8: "BF16" } as const;

/**
 * Writes `config.json`, `generation_config.json` and random weights.
 *
 * @param folder Created when it does not exist.
 * @param json The content of `config.json`; must be a config of the family.
 */
export async function makeCheckpoint(
  folder: string,
  json: Readonly<Record<string, unknown>>,
  options: MakeCheckpointOptions = {},
): Promise<void> {
  const { seed = 1, dtype = "f32", shards = 1 } = options;
  const random = new Random(seed);
  const config = parseConfig(json, "makeCheckpoint");
  const tensors = new Map<string, TestTensor>();
  const add = (expected: ExpectedTensor) => {
    const { name, shape } = expected;
    const values = randomValues(expected, random);
    if (
      dtype === "fp8" && expected.scaled.includes("F8_E4M3") &&
      name !== "lm_head.weight"
    ) {
      const { weight, scale } = quantize(values, shape);
      tensors.set(name, weight);
      tensors.set(`${name}_scale_inv`, scale);
    } else {
      const isBias = name.endsWith("_bias");
      tensors.set(name, {
        dtype: isBias ? "F32" : DTYPES[dtype],
        shape: [...shape],
        data: values,
      });
    }
  };
  for (const expected of expectedTensors(config)) {
    if (!expected.optional) add(expected);
  }
  if (options.predictionLayer) {
    const prefix = `model.layers.${config.num_hidden_layers}`;
    const { hidden_size } = config;
    const rules = { scaled: [], optional: false };
    for (
      const name of ["input_layernorm", "enorm", "hnorm", "shared_head.norm"]
    ) {
      add({ name: `${prefix}.${name}.weight`, shape: [hidden_size], ...rules });
    }
    const shape = [hidden_size, 2 * hidden_size];
    add({ name: `${prefix}.eh_proj.weight`, shape, ...rules });
  }

  await Deno.mkdir(folder, { recursive: true });
  const write = (name: string, content: unknown) =>
    Deno.writeTextFile(`${folder}/${name}`, JSON.stringify(content, null, 2));
  await write("config.json", json);
  await write("generation_config.json", {
    bos_token_id: json.bos_token_id,
    eos_token_id: json.eos_token_id,
    do_sample: false,
  });
  if (shards === 1) {
    await writeSafetensors(`${folder}/model.safetensors`, tensors);
    return;
  }
  const pad = (n: number) => String(n).padStart(5, "0");
  const weight_map: Record<string, string> = {};
  const entries = [...tensors];
  for (let shard = 0; shard < shards; shard++) {
    const file = `model-${pad(shard + 1)}-of-${pad(shards)}.safetensors`;
    const part = entries.slice(
      Math.floor(shard * entries.length / shards),
      Math.floor((shard + 1) * entries.length / shards),
    );
    for (const [name] of part) weight_map[name] = file;
    await writeSafetensors(`${folder}/${file}`, new Map(part));
  }
  await write("model.safetensors.index.json", { metadata: {}, weight_map });
}
