import { DType } from "./enums.ts";
import { openLibrary } from "./library.ts";
import { ErrorBuffer } from "./status.ts";
import { WeightDesc } from "./structs.ts";
import type { NativeWeight, WeightDType } from "./weight.ts";

/** A matrix in the bytes of a format, as `moela_weight_desc` describes it. */
export interface StoredMatrix {
  /** The elements. */
  data: Uint8Array<ArrayBuffer>;
  /** The scales; empty for types without. */
  scales: Uint8Array<ArrayBuffer>;
}

/** Bytes of a matrix `[rows, cols]`, and of its scales. */
export function matrixBytes(
  dtype: NativeWeight["stored"],
  rows: number,
  cols: number,
): { data: number; scales: number } {
  const groups = Math.ceil(cols / 128);
  switch (dtype) {
    case "f32":
      return { data: rows * cols * 4, scales: 0 };
    case "bf16":
    case "f16":
      return { data: rows * cols * 2, scales: 0 };
    case "fp8":
      return { data: rows * cols, scales: Math.ceil(rows / 128) * groups * 4 };
    case "int8":
      return { data: rows * cols, scales: rows * groups * 2 };
    case "int4":
      return {
        data: rows * Math.ceil(cols / 64) * 32,
        scales: rows * groups * 4,
      };
  }
}

/**
 * Converts a matrix as loading would: the same bits. A matrix may be cut at multiples of 128 rows.
 *
 * @throws NativeError when the bytes do not fit the shape
 *
 * @example
 * ```ts
 * import { convertMatrix } from "./convert.ts";
 *
 * const data = new Uint8Array(new Float32Array([1, -2, 0.5]).buffer);
 * const scales = new Uint8Array();
 * const int8 = await convertMatrix({ data, scales }, "f32", "int8", 1, 3);
 * console.assert(new Int8Array(int8.data.buffer)[1] === -127);
 * ```
 */
export async function convertMatrix(
  from: StoredMatrix,
  stored: NativeWeight["stored"],
  dtype: WeightDType,
  rows: number,
  cols: number,
): Promise<StoredMatrix> {
  const bytes = matrixBytes(dtype, rows, cols);
  const to = {
    data: new Uint8Array(bytes.data),
    scales: new Uint8Array(bytes.scales),
  };
  const err = new ErrorBuffer();
  const { symbols } = openLibrary("cpu");
  const status = await symbols.moela_convert(
    WeightDesc.encode({
      stored: DType[stored],
      dtype: DType[dtype],
      count: 1,
      rows: BigInt(rows),
      cols: BigInt(cols),
    }),
    from.data,
    BigInt(from.data.length),
    // An empty buffer has no address to pass.
    from.scales.length > 0 ? from.scales : EMPTY,
    BigInt(from.scales.length),
    to.data,
    BigInt(bytes.data),
    bytes.scales > 0 ? to.scales : EMPTY,
    BigInt(bytes.scales),
    err.bytes,
    err.length,
  );
  err.check(status, "Cannot convert a weight");
  return to;
}

const EMPTY = new Uint8Array(1);
