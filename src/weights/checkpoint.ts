/**
 * A checkpoint in the Hugging Face layout: a folder with `config.json` and
 * safetensors files. Opening reads and checks everything but the tensors'
 * bytes, which the kernel library maps by itself.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { CheckpointError } from "../errors.ts";
import { type ModelConfig, parseConfig } from "../model/config.ts";
import { isJsonObject, show } from "../model/fields.ts";
import {
  type GenerationConfig,
  parseGenerationConfig,
} from "../model/generation_config.ts";
import { checkTensors } from "./expect.ts";
import {
  readSafetensorsHeader,
  type SafetensorsEntry,
  type SafetensorsHeader,
} from "./safetensors.ts";

/** Where one tensor of a checkpoint lies. */
export interface CheckpointTensor extends SafetensorsEntry {
  /** Index into `Checkpoint.files`. */
  readonly file: number;
  /** The file's path. */
  readonly path: string;
}

/** A checkpoint whose config and tensor directory agree. */
export interface Checkpoint {
  /** The folder. */
  readonly path: string;
  /** `config.json`, checked. */
  readonly config: ModelConfig;
  /** Absent without `generation_config.json`. */
  readonly generationConfig: GenerationConfig | undefined;
  /** The safetensors files, each once. */
  readonly files: readonly { readonly path: string; readonly bytes: number }[];
  /** Every tensor of every file by name, those of no use included. */
  readonly tensors: ReadonlyMap<string, CheckpointTensor>;
}

const INDEX = "model.safetensors.index.json";

/** Far above the largest index published, and no danger to memory. */
const MAX_JSON_BYTES = 2 ** 28;

/**
 * Reads a JSON file.
 *
 * @throws {CheckpointError} When it is not JSON in UTF-8.
 * @throws {Deno.errors.NotFound} And `NotCapable`, as Deno gives them.
 */
async function readJson(path: string): Promise<unknown> {
  const { isFile, size } = await Deno.stat(path);
  if (!isFile) throw new CheckpointError(`${path}: is not a file, and must be`);
  if (size > MAX_JSON_BYTES) {
    throw new CheckpointError(
      `${path}: has ${size} bytes, and must have at most ${MAX_JSON_BYTES}`,
    );
  }
  const bytes = await Deno.readFile(path);
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (cause) {
    throw new CheckpointError(`${path}: is not JSON in UTF-8, and must be`, {
      cause,
    });
  }
}

/** Resolves to undefined when the file does not exist. */
async function readOptionalJson(path: string): Promise<unknown> {
  try {
    return await readJson(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

/** The index's `weight_map`: which shard holds which tensor. */
function parseIndex(json: unknown, path: string): Map<string, string> {
  const map = isJsonObject(json) ? json.weight_map : undefined;
  if (!isJsonObject(map)) {
    throw new CheckpointError(
      `${path}: weight_map is ${
        show(map)
      }, and must be an object of file names`,
    );
  }
  const shards = new Map<string, string>();
  for (const [tensor, shard] of Object.entries(map)) {
    // A plain name: nothing outside the folder is ever opened.
    if (
      typeof shard !== "string" || shard.length > 255 ||
      !/^[^./\\\0][^/\\\0]*\.safetensors$/.test(shard)
    ) {
      throw new CheckpointError(
        `${path}: tensor ${show(tensor)} is said to be in ${
          show(shard)
        }, and ` +
          "must be in a *.safetensors file of the same folder",
      );
    }
    shards.set(tensor, shard);
  }
  if (shards.size === 0) {
    throw new CheckpointError(`${path}: weight_map is empty`);
  }
  return shards;
}

/** The weights' file names of a folder without an index. */
async function findSingleFile(folder: string): Promise<string> {
  const names: string[] = [];
  for await (const { name } of Deno.readDir(folder)) {
    if (name.endsWith(".safetensors")) names.push(name);
  }
  if (names.includes("model.safetensors")) return "model.safetensors";
  if (names.length !== 1) {
    throw new CheckpointError(
      `${folder}: holds ${names.length} *.safetensors files, and must hold ` +
        `model.safetensors, one such file, or ${INDEX} and its shards`,
    );
  }
  return names[0];
}

async function readShard(
  path: string,
  index: string | undefined,
): Promise<SafetensorsHeader> {
  try {
    return await readSafetensorsHeader(path);
  } catch (error) {
    if (index === undefined || !(error instanceof Deno.errors.NotFound)) {
      throw error;
    }
    throw new CheckpointError(`${path}: missing, and ${index} names it`, {
      cause: error,
    });
  }
}

/** Joins the shards' headers; a name may be in one shard only. */
function joinTensors(
  headers: readonly SafetensorsHeader[],
): Map<string, CheckpointTensor> {
  const tensors = new Map<string, CheckpointTensor>();
  for (const [file, { path, tensors: entries }] of headers.entries()) {
    for (const [name, entry] of entries) {
      const other = tensors.get(name);
      if (other !== undefined) {
        throw new CheckpointError(
          `${path}: tensor ${show(name)} is also in ${other.path}, and must ` +
            "be in one file only",
        );
      }
      tensors.set(name, Object.freeze({ ...entry, file, path }));
    }
  }
  return tensors;
}

async function readHeaders(folder: string): Promise<SafetensorsHeader[]> {
  const indexPath = `${folder}/${INDEX}`;
  const index = await readOptionalJson(indexPath);
  if (index === undefined) {
    const name = await findSingleFile(folder);
    return [await readShard(`${folder}/${name}`, undefined)];
  }
  const shards = parseIndex(index, indexPath);
  const headers = new Map<string, SafetensorsHeader>();
  for (const name of new Set(shards.values())) {
    headers.set(name, await readShard(`${folder}/${name}`, indexPath));
  }
  for (const [tensor, shard] of shards) {
    const header = headers.get(shard);
    if (header === undefined || !header.tensors.has(tensor)) {
      throw new CheckpointError(
        `${folder}/${shard}: tensor ${show(tensor)} is missing, and ` +
          `${indexPath} says that it is there`,
      );
    }
  }
  return [...headers.values()];
}

function folderPath(path: string | URL): string {
  if (typeof path === "string") {
    return path.length > 1 ? path.replace(/\/+$/, "") || "/" : path;
  }
  if (!(path instanceof URL)) {
    throw new TypeError(
      `Cannot open a checkpoint: path is ${show(path)}, and must be a string ` +
        "or a URL",
    );
  }
  if (path.protocol !== "file:") {
    throw new TypeError(
      `Cannot open a checkpoint: the URL is ${show(path.href)}, and must ` +
        'begin with "file:"',
    );
  }
  return folderPath(fileURLToPath(path));
}

/**
 * Opens a checkpoint: reads `config.json`, `generation_config.json` and the
 * headers of the safetensors files, and checks that they agree.
 *
 * @param path The folder, or its `file:` URL.
 * @throws {CheckpointError} A file that is damaged or hostile, a config
 * outside the family, a missing shard, a tensor that is missing, superfluous,
 * doubled, or of the wrong shape or type. Names file, tensor, expected, found.
 * @throws {TypeError} When `path` is neither a string nor a `file:` URL.
 * @throws {Deno.errors.NotFound} And `NotCapable`, as Deno gives them.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { openCheckpoint } from "./checkpoint.ts";
 *
 * const { config, tensors } = await openCheckpoint("models/nano");
 * const { shape } = tensors.get("lm_head.weight")!;
 * assertEquals(shape[0], config.vocab_size);
 * ```
 */
export async function openCheckpoint(path: string | URL): Promise<Checkpoint> {
  const folder = folderPath(path);
  if (!(await Deno.stat(folder)).isDirectory) {
    throw new CheckpointError(
      `${folder}: is not a folder, and must be one with config.json and ` +
        "*.safetensors",
    );
  }
  const configPath = `${folder}/config.json`;
  const config = parseConfig(await readJson(configPath), configPath);
  const generationPath = `${folder}/generation_config.json`;
  const generation = await readOptionalJson(generationPath);
  const headers = await readHeaders(folder);
  const tensors = joinTensors(headers);
  checkTensors(config, tensors, folder);
  return {
    path: folder,
    config,
    generationConfig: generation === undefined
      ? undefined
      : parseGenerationConfig(generation, generationPath, config.vocab_size),
    files: headers.map(({ path, fileBytes }) => ({ path, bytes: fileBytes })),
    tensors,
  };
}
