/** Weights of every type on a device, made from f32, and their definitions. */
import type { Kernels, Tensor, WeightDType } from "../../ffi/mod.ts";
import type { Floats } from "./ops.ts";

/** The types with scales. */
export type ScaledType = "fp8" | "int8" | "int4";
export const scaledTypes: readonly ScaledType[] = ["fp8", "int8", "int4"];

/** Columns that share a scale. */
export const GROUP = 128;

/**
 * `count` matrices `[rows, cols]`, converted to `dtype` as they are while a checkpoint loads, and
 * what each of them then reads as.
 */
export async function typedWeight(
  kernels: Kernels,
  data: Floats,
  rows: number,
  cols: number,
  dtype: WeightDType,
): Promise<{ tensor: Tensor; values: Floats[] }> {
  const path = await Deno.makeTempFile();
  try {
    await Deno.writeFile(path, new Uint8Array(data.buffer));
    const { model } = kernels;
    const file = model.addFile(path);
    const count = data.length / rows / cols;
    const tensor = await model.addWeight({
      stored: "f32",
      dtype,
      rows,
      cols,
      parts: Array.from(
        { length: count },
        (_, part) => ({ file, offset: part * rows * cols * 4 }),
      ),
    });
    const values = Array.from(
      { length: count },
      (_, part) => model.readWeight(tensor, part),
    );
    return { tensor, values };
  } finally {
    await Deno.remove(path);
  }
}

/** Rounds to the nearest integer, ties to even. */
function nearest(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
}

/** Rows as products with int8 and int4 take them: each group of 128 rounded to 127 steps a side. */
export function quantizedRows(x: Floats, cols: number): Floats {
  const out = new Float32Array(x.length);
  const f = Math.fround;
  for (let row = 0; row < x.length; row += cols) {
    for (let begin = 0; begin < cols; begin += GROUP) {
      const at = row + begin, end = row + Math.min(begin + GROUP, cols);
      const magnitude = x.subarray(at, end).reduce(
        (max, v) => Math.max(max, Math.abs(v)),
        0,
      );
      if (magnitude === 0) continue;
      const factor = f(127 / magnitude), scale = f(magnitude / 127);
      for (let i = at; i < end; i++) out[i] = nearest(f(x[i] * factor)) * scale;
    }
  }
  return out;
}
