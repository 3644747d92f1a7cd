/**
 * Writes a checkpoint of seeded random weights: the tensors of a config in shards, one chunk of
 * elements in memory at a time. The numbers are those of a model made without a file.
 *
 * @module
 */
import { DType, openLibrary } from "../ffi/mod.ts";
import { ErrorBuffer } from "../ffi/status.ts";
import { type ModelConfig, parseConfig } from "../src/model/config.ts";
import { expectedTensors } from "../src/weights/expect.ts";
import { generatedSpread, tensorKey } from "../src/weights/generated.ts";
import type { ConfigJson } from "./shapes.ts";

/** Options of {@link writeCheckpoint}. */
export interface WriteOptions {
  /** Default 1. */
  seed?: number;
  /** Default "bf16"; a router's selection bias is F32 in any case. */
  dtype?: "f32" | "bf16";
  /** Bytes of a shard's tensors at most, but for a tensor that is larger; default 4e9. */
  shardBytes?: number;
  /** Told how many bytes are written, of how many. */
  onProgress?: (written: number, total: number) => void;
}

/** A tensor to be written. */
interface Planned {
  name: string;
  shape: readonly number[];
  elements: number;
  dtype: "f32" | "bf16";
  bytes: number;
}

/** Elements that are made at once. */
const CHUNK = 1 << 22;
const BYTES = { f32: 4, bf16: 2 };
const STORED = { f32: "F32", bf16: "BF16" };

/** The tensors of a config, distributed to shards in the order of the layers. */
function planShards(
  config: ModelConfig,
  dtype: "f32" | "bf16",
  shardBytes: number,
): Planned[][] {
  const shards: Planned[][] = [[]];
  let filled = 0;
  for (const { name, shape, optional } of expectedTensors(config)) {
    if (optional) continue;
    const elements = shape.reduce((product, n) => product * n, 1);
    const type = name.endsWith("correction_bias") ? "f32" : dtype;
    const bytes = elements * BYTES[type];
    if (filled > 0 && filled + bytes > shardBytes) {
      shards.push([]);
      filled = 0;
    }
    shards[shards.length - 1].push({
      name,
      shape,
      elements,
      dtype: type,
      bytes,
    });
    filled += bytes;
  }
  // The wider type first: then every tensor lies at a multiple of its elements' size.
  for (const shard of shards) {
    shard.sort((a, b) => BYTES[b.dtype] - BYTES[a.dtype]);
  }
  return shards;
}

/** Eight bytes of length, then JSON, padded so that the data begins at a multiple of 8. */
function header(shard: readonly Planned[]): Uint8Array {
  const entries: Record<string, unknown> = { __metadata__: { format: "pt" } };
  let at = 0;
  for (const { name, shape, dtype, bytes } of shard) {
    const data_offsets = [at, at + bytes];
    entries[name] = { dtype: STORED[dtype], shape, data_offsets };
    at += bytes;
  }
  const json = JSON.stringify(entries);
  const padded = json.padEnd(Math.ceil(json.length / 8) * 8);
  const file = new Uint8Array(8 + padded.length);
  new DataView(file.buffer).setBigUint64(0, BigInt(padded.length), true);
  file.set(new TextEncoder().encode(padded), 8);
  return file;
}

async function writeAll(file: Deno.FsFile, bytes: Uint8Array) {
  for (let at = 0; at < bytes.length;) {
    at += await file.write(bytes.subarray(at));
  }
}

/** Writes one tensor's elements; a chunk is made while the one before is written. */
async function writeTensor(
  file: Deno.FsFile,
  tensor: Planned,
  seed: number,
  config: ModelConfig,
  onBytes: (bytes: number) => void,
) {
  const { symbols } = openLibrary();
  const err = new ErrorBuffer();
  const { name, shape, elements, dtype } = tensor;
  const key = tensorKey(name);
  const { mean, deviation } = generatedSpread(name, shape, config);
  let pending = Promise.resolve();
  for (let begin = 0; begin < elements; begin += CHUNK) {
    const count = Math.min(CHUNK, elements - begin);
    const out = new Uint8Array(count * BYTES[dtype]);
    err.check(
      symbols.moela_generate(
        BigInt(seed),
        key,
        BigInt(begin),
        BigInt(count),
        mean,
        deviation,
        DType[dtype],
        out,
        err.bytes,
        err.length,
      ),
      `Cannot generate ${name}`,
    );
    await pending;
    pending = writeAll(file, out);
    // It may fail while the next chunk is made; the await above throws then.
    pending.catch(() => {});
    onBytes(out.length);
  }
  await pending;
}

/** Bytes free where a folder is, or undefined where the system does not tell. */
async function freeBytes(folder: string): Promise<number | undefined> {
  try {
    const { success, stdout } = await new Deno.Command("df", {
      args: ["-Pk", folder],
      stderr: "null",
    }).output();
    const fields = new TextDecoder().decode(stdout).trim().split("\n").at(-1)
      ?.trim().split(/\s+/);
    const free = Number(fields?.[3]) * 1024;
    return success && Number.isFinite(free) ? free : undefined;
  } catch (error) {
    const unavailable = error instanceof Deno.errors.NotFound ||
      error instanceof Deno.errors.NotCapable;
    if (unavailable) return undefined;
    throw error;
  }
}

async function prepareFolder(folder: string, total: number) {
  await Deno.mkdir(folder, { recursive: true });
  for await (const { name } of Deno.readDir(folder)) {
    throw new Error(
      `Cannot write a checkpoint: ${folder} holds ${name}, and must be new or empty`,
    );
  }
  const free = await freeBytes(folder);
  if (free !== undefined && free < total) {
    const gb = (bytes: number) => `${(bytes / 1e9).toFixed(1)} GB`;
    throw new Error(
      `Cannot write a checkpoint: it takes ${gb(total)}, and ${gb(free)} are ` +
        `free at ${folder}`,
    );
  }
}

/**
 * Writes `config.json`, `generation_config.json`, shards and their index to a new folder.
 * `config.json` comes last: a folder that was cut short does not open.
 *
 * @returns how many bytes of tensors and shards were written
 * @throws Error when the folder is not empty or the disk has too little room; CheckpointError when
 * the config is none of the family
 */
export async function writeCheckpoint(
  folder: string,
  json: ConfigJson,
  options: WriteOptions = {},
): Promise<{ bytes: number; shards: number }> {
  const { seed = 1, dtype = "bf16", shardBytes = 4e9, onProgress } = options;
  const config = parseConfig(json, "config.json");
  const shards = planShards(config, dtype, shardBytes);
  const total = shards.flat().reduce((sum, { bytes }) => sum + bytes, 0);
  await prepareFolder(folder, total);
  const pad = (n: number) => String(n).padStart(5, "0");
  const weight_map: Record<string, string> = {};
  let written = 0;
  for (const [i, shard] of shards.entries()) {
    const name = `model-${pad(i + 1)}-of-${pad(shards.length)}.safetensors`;
    using file = await Deno.open(`${folder}/${name}`, {
      write: true,
      createNew: true,
    });
    await writeAll(file, header(shard));
    for (const tensor of shard) {
      weight_map[tensor.name] = name;
      await writeTensor(file, tensor, seed, config, (bytes) => {
        written += bytes;
        onProgress?.(written, total);
      });
    }
  }
  const write = (name: string, content: unknown) =>
    Deno.writeTextFile(
      `${folder}/${name}`,
      JSON.stringify(content, null, 2) + "\n",
    );
  await write("model.safetensors.index.json", {
    metadata: { total_size: total },
    weight_map,
  });
  await write("generation_config.json", {
    bos_token_id: json.bos_token_id,
    eos_token_id: json.eos_token_id,
    do_sample: false,
  });
  const torch_dtype = dtype === "f32" ? "float32" : "bfloat16";
  await write("config.json", { ...json, torch_dtype });
  return { bytes: total, shards: shards.length };
}
