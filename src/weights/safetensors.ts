/**
 * Headers of safetensors files: eight bytes of length (little-endian), that
 * many bytes of JSON, then the tensors' bytes without gaps. Only the header
 * passes through JavaScript.
 * Source: the format's text in the huggingface/safetensors repository.
 *
 * @module
 */

import { CheckpointError } from "../errors.ts";
import { isJsonObject, type JsonObject, show } from "../model/fields.ts";

/** Element types of the format that take whole bytes. */
export type SafetensorsDtype =
  | "BOOL"
  | "U8"
  | "I8"
  | "F8_E4M3"
  | "F8_E5M2"
  | "F8_E8M0"
  | "U16"
  | "I16"
  | "F16"
  | "BF16"
  | "U32"
  | "I32"
  | "F32"
  | "U64"
  | "I64"
  | "F64";

/** Bytes of one element. */
const DTYPE_BYTES: Readonly<Record<SafetensorsDtype, number>> = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E4M3: 1,
  F8_E5M2: 1,
  F8_E8M0: 1,
  U16: 2,
  I16: 2,
  F16: 2,
  BF16: 2,
  U32: 4,
  I32: 4,
  F32: 4,
  U64: 8,
  I64: 8,
  F64: 8,
};

/** Where one tensor lies in its file, row-major. */
export interface SafetensorsEntry {
  /** Type of the elements. */
  readonly dtype: SafetensorsDtype;
  /** Sizes, the slowest first; empty for a scalar. */
  readonly shape: readonly number[];
  /** Absolute file offset of the first byte. */
  readonly begin: number;
  /** Absolute file offset after the last byte. */
  readonly end: number;
}

/** A file's header, checked against the file's size. */
export interface SafetensorsHeader {
  /** The file. */
  readonly path: string;
  /** Absolute offset of the first tensor's bytes. */
  readonly dataOffset: number;
  /** Size of the whole file. */
  readonly fileBytes: number;
  /** Every tensor by name. */
  readonly tensors: ReadonlyMap<string, SafetensorsEntry>;
  /** The header's `__metadata__`. */
  readonly metadata: ReadonlyMap<string, string>;
}

/** The format's own limit. */
const MAX_HEADER_BYTES = 100_000_000;

/** Length of the JSON, from the file's first eight bytes. */
function headerLength(
  prefix: Uint8Array<ArrayBuffer>,
  fileBytes: number,
  path: string,
): number {
  if (fileBytes < 8) {
    throw new CheckpointError(
      `${path}: truncated: ${fileBytes} bytes, and a safetensors file starts ` +
        "with 8 bytes of header length",
    );
  }
  const length = new DataView(prefix.buffer, prefix.byteOffset)
    .getBigUint64(0, true);
  if (length > MAX_HEADER_BYTES) {
    throw new CheckpointError(
      `${path}: the header's length is ${length} bytes, and must be at most ` +
        `${MAX_HEADER_BYTES}; is this a safetensors file?`,
    );
  }
  if (length > fileBytes - 8) {
    throw new CheckpointError(
      `${path}: truncated: the header takes ${length} bytes, and the file has ` +
        `${fileBytes - 8} after its length`,
    );
  }
  return Number(length);
}

function parseJson(bytes: Uint8Array, path: string): JsonObject {
  let json: unknown;
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })
      .decode(bytes);
    json = JSON.parse(text);
  } catch (cause) {
    throw new CheckpointError(
      `${path}: the header is not JSON in UTF-8, and must be`,
      { cause },
    );
  }
  if (!isJsonObject(json)) {
    throw new CheckpointError(
      `${path}: the header is ${show(json)}, and must be a JSON object`,
    );
  }
  return json;
}

/** `count` non-negative safe integers, or as many as there are without it. */
function isSizes(value: unknown, count?: number): value is number[] {
  return Array.isArray(value) &&
    (count === undefined || value.length === count) &&
    value.every((size) => Number.isSafeInteger(size) && size >= 0);
}

function parseEntry(
  value: unknown,
  dataOffset: number,
  fileBytes: number,
  where: string,
): SafetensorsEntry {
  if (!isJsonObject(value)) {
    throw new CheckpointError(
      `${where} is ${show(value)}, and must be an object with dtype, shape ` +
        "and data_offsets",
    );
  }
  const { dtype, shape, data_offsets: offsets } = value;
  if (typeof dtype !== "string" || !Object.hasOwn(DTYPE_BYTES, dtype)) {
    throw new CheckpointError(
      `${where}: dtype is ${show(dtype)}, and must be one of ` +
        Object.keys(DTYPE_BYTES).join(", "),
    );
  }
  const type = dtype as SafetensorsDtype;
  if (!isSizes(shape)) {
    throw new CheckpointError(
      `${where}: shape is ${show(shape)}, and must be a list of integers ` +
        "from 0 on",
    );
  }
  if (!isSizes(offsets, 2)) {
    throw new CheckpointError(
      `${where}: data_offsets are ${show(offsets)}, and must be two integers ` +
        "from 0 on",
    );
  }
  const dataBytes = fileBytes - dataOffset;
  if (offsets[0] > offsets[1] || offsets[1] > dataBytes) {
    throw new CheckpointError(
      `${where}: data_offsets are ${show(offsets)}, and must ascend within ` +
        `the file's ${dataBytes} bytes of data; a truncated file?`,
    );
  }
  // A product that overflows becomes inexact or infinite, but stays above
  // every real file, so that the comparison still fails.
  const bytes = shape.reduce((size, n) => size * n, DTYPE_BYTES[type]);
  if (bytes !== offsets[1] - offsets[0]) {
    throw new CheckpointError(
      `${where}: shape ${show(shape)} of ${type} takes ${bytes} bytes, and ` +
        `data_offsets ${show(offsets)} hold ${offsets[1] - offsets[0]}`,
    );
  }
  return Object.freeze({
    dtype: type,
    shape: Object.freeze(shape),
    begin: dataOffset + offsets[0],
    end: dataOffset + offsets[1],
  });
}

/** The format allows no overlaps, no holes, and no bytes beyond the tensors. */
function checkCoverage(header: SafetensorsHeader): void {
  const { path, tensors, dataOffset, fileBytes } = header;
  const inOrder = [...tensors].sort(([, a], [, b]) =>
    a.begin - b.begin || a.end - b.end
  );
  let covered = dataOffset;
  let previous = "the header";
  for (const [name, { begin, end }] of inOrder) {
    if (begin !== covered) {
      const relation = begin < covered ? "overlaps" : "leaves a hole after";
      throw new CheckpointError(
        `${path}: tensor ${show(name)} ${relation} ${previous}: it begins at ` +
          `byte ${begin - dataOffset} of the data, and must at ` +
          `${covered - dataOffset}`,
      );
    }
    covered = end;
    previous = `tensor ${show(name)}`;
  }
  if (covered !== fileBytes) {
    throw new CheckpointError(
      `${path}: the file has ${fileBytes} bytes, and its tensors end at ` +
        `${covered}`,
    );
  }
}

function parseMetadata(
  value: unknown,
  path: string,
): ReadonlyMap<string, string> {
  const entries = isJsonObject(value) ? Object.entries(value) : undefined;
  const isText = (entry: [string, unknown]): entry is [string, string] =>
    typeof entry[1] === "string";
  if (!entries?.every(isText)) {
    throw new CheckpointError(
      `${path}: __metadata__ must be an object of strings`,
    );
  }
  return new Map(entries);
}

/**
 * Checks a header that has been read.
 *
 * @param json The header's bytes, without the length before them.
 * @param fileBytes Size of the whole file.
 * @param path The file's path, for messages.
 * @throws {CheckpointError} When the header contradicts itself or the file.
 */
export function parseSafetensorsHeader(
  json: Uint8Array,
  fileBytes: number,
  path: string,
): SafetensorsHeader {
  const dataOffset = 8 + json.length;
  const tensors = new Map<string, SafetensorsEntry>();
  let metadata: ReadonlyMap<string, string> = new Map();
  for (const [name, value] of Object.entries(parseJson(json, path))) {
    if (name === "__metadata__") {
      metadata = parseMetadata(value, path);
      continue;
    }
    const where = `${path}: tensor ${show(name)}`;
    tensors.set(name, parseEntry(value, dataOffset, fileBytes, where));
  }
  const header = { path, dataOffset, fileBytes, tensors, metadata };
  checkCoverage(header);
  return header;
}

async function readFully(
  file: Deno.FsFile,
  bytes: Uint8Array,
  path: string,
): Promise<void> {
  for (let filled = 0; filled < bytes.length;) {
    const count = await file.read(bytes.subarray(filled));
    if (count === null) {
      throw new CheckpointError(
        `${path}: truncated: it ended while its header was read`,
      );
    }
    filled += count;
  }
}

/**
 * Reads and checks the header of a safetensors file.
 *
 * @param path The file.
 * @throws {CheckpointError} When the file is truncated, or its header is
 * damaged, hostile or at odds with the file's size: names the file, the
 * tensor, what was expected and what was found.
 * @throws {Deno.errors.NotFound} And `NotCapable`, as Deno gives them.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { readSafetensorsHeader } from "./safetensors.ts";
 *
 * const path = "models/nano/model-00001-of-00002.safetensors";
 * const { tensors } = await readSafetensorsHeader(path);
 * assertEquals(tensors.get("model.layers.0.mlp.up_proj.weight")?.dtype, "BF16");
 * ```
 */
export async function readSafetensorsHeader(
  path: string,
): Promise<SafetensorsHeader> {
  // Before opening: a pipe would block there.
  const { isFile, size } = await Deno.stat(path);
  if (!isFile) throw new CheckpointError(`${path}: is not a file, and must be`);
  using file = await Deno.open(path);
  const prefix = new Uint8Array(8);
  if (size >= 8) await readFully(file, prefix, path);
  const json = new Uint8Array(headerLength(prefix, size, path));
  await readFully(file, json, path);
  return parseSafetensorsHeader(json, size, path);
}
