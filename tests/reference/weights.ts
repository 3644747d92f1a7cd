/** A checkpoint's weights in float64, FP8 dequantized. */

import { readSafetensors, type TestTensor } from "../support/safetensors.ts";

/** A row-major matrix; a vector has one row. */
export interface Matrix {
  rows: number;
  columns: number;
  data: Float64Array;
}

/** w = q · scale of its 128 × 128 block. */
function dequantize(weight: TestTensor, scale: TestTensor): Float64Array {
  const [, columns] = weight.shape;
  const across = scale.shape[1];
  return Float64Array.from(weight.data, (q, i) => {
    const row = Math.floor(i / columns), column = i % columns;
    const block = Math.floor(row / 128) * across + Math.floor(column / 128);
    return q * scale.data[block];
  });
}

/** Reads every `*.safetensors` of a folder but the fixtures' expectations. */
export async function readWeights(
  folder: string,
): Promise<Map<string, Matrix>> {
  const tensors = new Map<string, TestTensor>();
  for await (const { name } of Deno.readDir(folder)) {
    if (!name.endsWith(".safetensors") || name.startsWith("expected")) continue;
    for (const [key, tensor] of await readSafetensors(`${folder}/${name}`)) {
      tensors.set(key, tensor);
    }
  }
  const matrices = new Map<string, Matrix>();
  for (const [name, tensor] of tensors) {
    const [rows, columns] = tensor.shape.length === 2
      ? tensor.shape
      : [1, tensor.shape[0]];
    const scale = tensors.get(`${name}_scale_inv`);
    const data = scale
      ? dequantize(tensor, scale)
      : Float64Array.from(tensor.data);
    matrices.set(name, { rows, columns, data });
  }
  return matrices;
}
