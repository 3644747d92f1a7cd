/**
 * Writes a checkpoint in another weight type: the bytes that loading would make, so that the result
 * loads by mapping. The router stays as it is stored and is widened at each load.
 *
 * @module
 */
import {
  convertMatrix,
  matrixBytes,
  type NativeWeight,
  type WeightDType,
} from "../../ffi/mod.ts";
import { show } from "../model/fields.ts";
import { projectionType, running, STORED } from "./bind.ts";
import type { Checkpoint, CheckpointTensor } from "./checkpoint.ts";
import { expectedTensors, SCALED_TYPES, scaleSuffix } from "./expect.ts";

/** The types that {@link quantizeCheckpoint} writes. */
export type QuantizedType = "fp8" | "int8" | "int4";

/** Options of {@link quantizeCheckpoint}. */
export interface QuantizeOptions {
  /** The type that projections get; norms, router and embedding keep theirs. */
  weights: QuantizedType;
  /** Told how many bytes are written, of how many. */
  onProgress?: (written: number, total: number) => void;
}

/** One tensor to be written; its scales follow it. */
interface Planned {
  name: string;
  from: CheckpointTensor;
  /** Where the old scales are. */
  fromScales?: CheckpointTensor;
  rows: number;
  cols: number;
  /** Undefined: copied as it is, scales too. */
  to?: WeightDType;
  entries: { name: string; dtype: string; shape: number[]; bytes: number }[];
}

/** Elements converted at once, so many that a call takes some milliseconds. */
const CHUNK = 1 << 22;
const ROW_BLOCK = 128;
const FILE_DTYPES: Record<string, string> = {
  f32: "F32",
  bf16: "BF16",
  fp8: "F8_E4M3",
  int8: "I8",
  int4: "U8",
};

const size = ({ begin, end }: CheckpointTensor) => end - begin;

/** What becomes of one tensor, or undefined for one that loading would not use. */
function plan(
  { tensors }: Checkpoint,
  { name, shape, scaled }: {
    name: string;
    shape: readonly number[];
    scaled: readonly string[];
  },
  weights: QuantizedType,
): Planned | undefined {
  const from = tensors.get(name);
  if (from === undefined) return undefined;
  const suffix = scaleSuffix(from.dtype);
  const fromScales = suffix === undefined
    ? undefined
    : tensors.get(name + suffix);
  const [rows, cols] = shape;
  const stored = STORED[from.dtype];
  const to = scaled.length === 0
    ? stored
    : running(stored, projectionType(name, weights, stored));
  if (to === stored || to === "f16") {
    const kept = [from, ...(fromScales ? [fromScales] : [])];
    const entries = kept.map((tensor, i) => ({
      name: i === 0 ? name : name + suffix,
      dtype: tensor.dtype,
      shape: [...tensor.shape],
      bytes: size(tensor),
    }));
    return { name, from, fromScales, rows, cols, entries };
  }
  const bytes = matrixBytes(to, rows, cols);
  const dtype = FILE_DTYPES[to];
  const type = SCALED_TYPES[dtype];
  const entries = [{
    name,
    dtype,
    shape: type ? type.shape(rows, cols) : [rows, cols],
    bytes: bytes.data,
  }];
  if (type) {
    entries.push({
      name: name + type.suffix,
      dtype: type.scaleDtype,
      shape: type.scales(rows, cols),
      bytes: bytes.scales,
    });
  }
  return { name, from, fromScales, rows, cols, to, entries };
}

/** Eight bytes of length, then JSON, padded so that the data begins at a multiple of 64. */
function header(planned: readonly Planned[], weights: string): Uint8Array {
  const json: Record<string, unknown> = {
    __metadata__: { format: "pt", weights },
  };
  let at = 0;
  for (
    const { name, dtype, shape, bytes } of planned.flatMap((p) => p.entries)
  ) {
    json[name] = { dtype, shape, data_offsets: [at, at + bytes] };
    at += bytes;
  }
  const text = new TextEncoder().encode(JSON.stringify(json));
  const length = Math.ceil((8 + text.length) / 64) * 64 - 8;
  const file = new Uint8Array(8 + length).fill(0x20);
  new DataView(file.buffer).setBigUint64(0, BigInt(length), true);
  file.set(text, 8);
  return file;
}

async function writeAll(file: Deno.FsFile, bytes: Uint8Array) {
  for (let at = 0; at < bytes.length;) {
    at += await file.write(bytes.subarray(at));
  }
}

async function read(
  file: Deno.FsFile,
  begin: number,
  bytes: number,
): Promise<Uint8Array<ArrayBuffer>> {
  const out = new Uint8Array(bytes);
  await file.seek(begin, Deno.SeekMode.Start);
  for (let filled = 0; filled < bytes;) {
    const count = await file.read(out.subarray(filled));
    if (count === null) throw new Error("A file ended while it was read");
    filled += count;
  }
  return out;
}

/** Rows `[begin, end)` as they are stored, with the scales that they need. */
async function readRows(
  planned: Planned,
  stored: NativeWeight["stored"],
  files: ReadonlyMap<string, Deno.FsFile>,
  begin: number,
  end: number,
) {
  const { from, fromScales, cols } = planned;
  const before = matrixBytes(stored, begin, cols);
  const until = matrixBytes(stored, end, cols);
  const part = (tensor: CheckpointTensor, first: number, last: number) =>
    read(files.get(tensor.path)!, tensor.begin + first, last - first);
  return {
    data: await part(from, before.data, until.data),
    scales: fromScales
      ? await part(fromScales, before.scales, until.scales)
      : new Uint8Array(),
  };
}

async function writeTensor(
  out: Deno.FsFile,
  files: ReadonlyMap<string, Deno.FsFile>,
  planned: Planned,
  onBytes: (bytes: number) => void,
) {
  const { from, fromScales, rows, cols, to } = planned;
  const write = async (bytes: Uint8Array) => {
    await writeAll(out, bytes);
    onBytes(bytes.length);
  };
  if (to === undefined) {
    for (const tensor of [from, ...(fromScales ? [fromScales] : [])]) {
      for (let at = tensor.begin; at < tensor.end; at += CHUNK) {
        const bytes = Math.min(CHUNK, tensor.end - at);
        await write(await read(files.get(tensor.path)!, at, bytes));
      }
    }
    return;
  }
  const stored = STORED[from.dtype];
  const step = Math.max(1, Math.floor(CHUNK / cols / ROW_BLOCK)) * ROW_BLOCK;
  const scales: Uint8Array[] = [];
  // As many chunks at once as there are processors: each is converted by one thread.
  const atOnce = navigator.hardwareConcurrency;
  for (let begin = 0; begin < rows; begin += step * atOnce) {
    const chunks = [];
    for (let i = 0; i < atOnce; i++) {
      const first = begin + i * step, last = Math.min(first + step, rows);
      if (first >= rows) break;
      const matrix = await readRows(planned, stored, files, first, last);
      chunks.push(convertMatrix(matrix, stored, to, last - first, cols));
    }
    for (const converted of await Promise.all(chunks)) {
      await write(converted.data);
      scales.push(converted.scales);
    }
  }
  for (const bytes of scales) await write(bytes);
}

/** `config.json` of the result. */
async function newConfig(folder: string, weights: QuantizedType) {
  const config = JSON.parse(await Deno.readTextFile(`${folder}/config.json`));
  const quantization_config = weights === "fp8"
    ? { quant_method: "fp8", fmt: "e4m3", weight_block_size: [128, 128] }
    : { quant_method: "moela", weights, group_size: 128 };
  return JSON.stringify({ ...config, quantization_config }, null, 2) + "\n";
}

/**
 * Writes `checkpoint` in another weight type to a new folder, shard by shard, a few MB in memory at
 * a time; tokenizer and templates are copied. The result loads by mapping alone, and gives the bits
 * that the source gives with `loadModel(source, { weights })`. `config.json` comes last: a folder
 * that was cut short does not open.
 *
 * @returns bytes of all shards
 * @throws Error when the folder is not empty
 */
export async function quantizeCheckpoint(
  checkpoint: Checkpoint,
  folder: string,
  { weights, onProgress }: QuantizeOptions,
): Promise<number> {
  await Deno.mkdir(folder, { recursive: true });
  for await (const { name } of Deno.readDir(folder)) {
    throw new Error(
      `Cannot quantize: ${folder} holds ${
        show(name)
      }, and must be new or empty`,
    );
  }
  const shards = checkpoint.files.map((): Planned[] => []);
  for (const expected of expectedTensors(checkpoint.config)) {
    const planned = plan(checkpoint, expected, weights);
    if (planned) shards[planned.from.file].push(planned);
  }
  const bytesOf = (planned: Planned) =>
    planned.entries.reduce((sum, { bytes }) => sum + bytes, 0);
  const total = shards.flat().reduce((sum, p) => sum + bytesOf(p), 0);
  const weight_map: Record<string, string> = {};
  const files = new Map<string, Deno.FsFile>();
  let written = 0;
  try {
    for (const { path } of checkpoint.files) {
      files.set(path, await Deno.open(path));
    }
    for (const [i, shard] of shards.entries()) {
      const path = checkpoint.files[i].path;
      const name = path.slice(path.lastIndexOf("/") + 1);
      using out = await Deno.open(`${folder}/${name}`, {
        write: true,
        createNew: true,
      });
      await writeAll(out, header(shard, weights));
      for (const planned of shard) {
        for (const entry of planned.entries) weight_map[entry.name] = name;
        await writeTensor(out, files, planned, (bytes) => {
          written += bytes;
          onProgress?.(written, total);
        });
      }
    }
  } finally {
    for (const file of files.values()) file.close();
  }
  if (shards.length > 1) {
    await Deno.writeTextFile(
      `${folder}/model.safetensors.index.json`,
      JSON.stringify({ metadata: { total_size: total }, weight_map }, null, 2) +
        "\n",
    );
  }
  for await (const { name, isFile } of Deno.readDir(checkpoint.path)) {
    const own = name === "config.json" || name.endsWith(".index.json");
    if (isFile && !own && /\.(json|jinja|model|txt)$/.test(name)) {
      await Deno.copyFile(`${checkpoint.path}/${name}`, `${folder}/${name}`);
    }
  }
  await Deno.writeTextFile(
    `${folder}/config.json`,
    await newConfig(checkpoint.path, weights),
  );
  return total;
}
