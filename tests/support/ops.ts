/** What the tests of single operations share: kernel sets, seeded numbers, comparisons. */
import { assert, assertEquals } from "@std/assert";
import {
  cudaWorks,
  type DeviceName,
  type KernelSetName,
  NativeDevice,
} from "../../ffi/mod.ts";
import { fromBf16, Random, toBf16 } from "./numbers.ts";

function available(device: DeviceName): KernelSetName[] {
  using opened = new NativeDevice({ device, threads: 1 });
  return opened.info().available;
}

/** The kernel sets of the CPU that work here. */
export const cpuKernelSets: readonly KernelSetName[] = available("cpu");

/** All kernel sets that work here: with the CUDA library and a GPU also theirs. */
export const kernelSets: readonly KernelSetName[] = [
  ...cpuKernelSets,
  ...(cudaWorks() ? available("cuda") : []),
];

export type Floats = Float32Array<ArrayBuffer>;
export type FloatType = "f32" | "bf16";
export const floatTypes: readonly FloatType[] = ["f32", "bf16"];

/** `n` normal numbers, the same for the same seed. */
export function normals(n: number, seed: number, deviation = 1): Floats {
  const random = new Random(seed);
  return Float32Array.from({ length: n }, () => deviation * random.normal());
}

/** `x` as it is stored in `type`, and what that reads back as. */
export function stored(x: Floats, type: FloatType) {
  if (type === "f32") return { data: x, values: x };
  const data = Uint16Array.from(x, toBf16);
  return { data, values: Float32Array.from(data, fromBf16) };
}

/** Every element within `tolerance`; NaN is never within. */
export function assertClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  tolerance: number,
  what: string,
) {
  assertEquals(actual.length, expected.length, what);
  for (let i = 0; i < expected.length; i++) {
    assert(
      Math.abs(actual[i] - expected[i]) <= tolerance,
      `${what}: element ${i} is ${actual[i]}, expected ${expected[i]}`,
    );
  }
}

/** The same bits throughout. */
export function assertSameBits(actual: Floats, expected: Floats, what: string) {
  assertEquals(actual.length, expected.length, what);
  const bits = (x: Floats) => new Uint32Array(x.buffer, x.byteOffset, x.length);
  const a = bits(actual), b = bits(expected);
  const differs = a.findIndex((word, i) => word !== b[i]);
  assert(
    differs < 0,
    `${what}: element ${differs} is ${actual[differs]}, not ${
      expected[differs]
    }`,
  );
}
