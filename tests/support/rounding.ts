/** What products on CUDA and in AMX take their inputs as. */
import type { KernelSetName } from "../../ffi/mod.ts";
import { fromBf16, toBf16 } from "./numbers.ts";
import type { Floats } from "./ops.ts";

/** Half a unit in the last place of bf16, relative. */
export const BF16_ROUNDING = 2 ** -9;

const onCuda = (kernels: KernelSetName) =>
  kernels === "generic" || kernels === "sm90";

export const onCpu = (kernels: KernelSetName) => !onCuda(kernels);

/** Whether a product with weights (or a cache) of this type rounds its input to bf16. */
export function roundsInput(kernels: KernelSetName, type: string): boolean {
  if (kernels === "amx") return type === "bf16";
  return onCuda(kernels) && (type === "bf16" || type === "fp8");
}

/** The input as a product with such weights takes it. */
export function taken(x: Floats, kernels: KernelSetName, type: string): Floats {
  return roundsInput(kernels, type)
    ? x.map((value) => fromBf16(toBf16(value)))
    : x;
}

/** The same for the products of single heads, which on the CPU are in f32 with every set. */
export function takenByHead(
  x: Floats,
  kernels: KernelSetName,
  type: string,
): Floats {
  return kernels === "amx" ? x : taken(x, kernels, type);
}

/**
 * CUDA multiplies queries, probabilities and up-projected keys and values in bf16 where weights and
 * caches are not f32: each is off by at most half a unit in its last place, scores of up to 8 by as
 * much of theirs.
 *
 * @param exact what f32 may be off by
 */
export function attentionTolerance(
  kernels: KernelSetName,
  type: string,
  exact: number,
): number {
  return onCuda(kernels) && type !== "f32" ? 10 * BF16_ROUNDING : exact;
}

/** The same for `mla_prefill()`, which AMX computes as CUDA does, where both types are bf16. */
export function prefillTolerance(
  kernels: KernelSetName,
  type: string,
  exact: number,
): number {
  if (kernels === "amx" && type === "bf16") return 10 * BF16_ROUNDING;
  return attentionTolerance(kernels, type, exact);
}
