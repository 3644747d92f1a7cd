/** Whole safetensors files as typed arrays, for tests. */

import { fromBf16, fromF16, fromF8, toBf16, toF16, toF8 } from "./numbers.ts";

/** Types that the tests read and write. */
export type TestDtype = "F32" | "BF16" | "F16" | "F8_E4M3" | "I32";

/** A tensor's elements, row-major: floats widened, I32 as it is. */
export interface TestTensor {
  dtype: TestDtype;
  shape: number[];
  data: Float32Array | Int32Array;
}

const ELEMENT_BYTES: Record<TestDtype, number> = {
  F32: 4,
  BF16: 2,
  F16: 2,
  F8_E4M3: 1,
  I32: 4,
};

function fromBytes(bytes: Uint8Array<ArrayBuffer>, dtype: TestDtype) {
  switch (dtype) {
    case "F32":
      return new Float32Array(bytes.buffer);
    case "I32":
      return new Int32Array(bytes.buffer);
    case "BF16":
      return Float32Array.from(new Uint16Array(bytes.buffer), fromBf16);
    case "F16":
      return Float32Array.from(new Uint16Array(bytes.buffer), fromF16);
    case "F8_E4M3":
      return Float32Array.from(bytes, fromF8);
  }
}

function toBytes({ data, dtype }: TestTensor): Uint8Array {
  const view = (typed: Float32Array | Int32Array | Uint16Array) =>
    new Uint8Array(typed.buffer, typed.byteOffset, typed.byteLength);
  switch (dtype) {
    case "F32":
    case "I32":
      return view(data);
    case "BF16":
      return view(Uint16Array.from(data, toBf16));
    case "F16":
      return view(Uint16Array.from(data, toF16));
    case "F8_E4M3":
      return Uint8Array.from(data, toF8);
  }
}

/** Reads a trusted file whole. */
export async function readSafetensors(
  path: string | URL,
): Promise<Map<string, TestTensor>> {
  const file = await Deno.readFile(path);
  const length = Number(new DataView(file.buffer).getBigUint64(0, true));
  const header: Record<
    string,
    { dtype: TestDtype; shape: number[]; data_offsets: [number, number] }
  > = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + length)));
  const tensors = new Map<string, TestTensor>();
  for (const [name, { dtype, shape, data_offsets }] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const [begin, end] = data_offsets;
    // slice, not subarray: the copy is aligned for every element type.
    const bytes = file.slice(8 + length + begin, 8 + length + end);
    tensors.set(name, { dtype, shape, data: fromBytes(bytes, dtype) });
  }
  return tensors;
}

/** The elements of a float tensor; throws when there is none of that name. */
export function floats(
  tensors: ReadonlyMap<string, TestTensor>,
  name: string,
): Float32Array {
  const data = tensors.get(name)?.data;
  if (!(data instanceof Float32Array)) throw new Error(`no floats: ${name}`);
  return data;
}

/** The elements of an I32 tensor; throws when there is none of that name. */
export function integers(
  tensors: ReadonlyMap<string, TestTensor>,
  name: string,
): Int32Array {
  const data = tensors.get(name)?.data;
  if (!(data instanceof Int32Array)) throw new Error(`no integers: ${name}`);
  return data;
}

/** The bytes of a file with any header and any data. */
export function safetensorsBytes(
  header: unknown,
  data: Uint8Array = new Uint8Array(),
): Uint8Array {
  const json = new TextEncoder().encode(
    typeof header === "string" ? header : JSON.stringify(header),
  );
  const file = new Uint8Array(8 + json.length + data.length);
  new DataView(file.buffer).setBigUint64(0, BigInt(json.length), true);
  file.set(json, 8);
  file.set(data, 8 + json.length);
  return file;
}

/** Writes tensors in their order, rounding to the nearest. */
export async function writeSafetensors(
  path: string,
  tensors: ReadonlyMap<string, TestTensor>,
): Promise<void> {
  const header: Record<string, unknown> = { __metadata__: { format: "pt" } };
  const parts: Uint8Array[] = [];
  let offset = 0;
  for (const [name, tensor] of tensors) {
    const bytes = toBytes(tensor);
    const { dtype, shape } = tensor;
    const count = shape.reduce((product, n) => product * n, 1);
    if (bytes.length !== count * ELEMENT_BYTES[dtype]) {
      throw new Error(`${name}: shape ${shape} against ${bytes.length} bytes`);
    }
    const data_offsets = [offset, offset + bytes.length];
    header[name] = { dtype, shape, data_offsets };
    parts.push(bytes);
    offset += bytes.length;
  }
  const data = new Uint8Array(offset);
  offset = 0;
  for (const part of parts) {
    data.set(part, offset);
    offset += part.length;
  }
  await Deno.writeFile(path, safetensorsBytes(header, data));
}
