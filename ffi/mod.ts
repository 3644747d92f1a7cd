/**
 * The kernel library for power users: each operation by itself on typed arrays and device tensors,
 * and programs of operations.
 *
 * @module
 */
export * from "./convert.ts";
export * from "./device.ts";
export * from "./enums.ts";
export * from "./kernels.ts";
export * from "./library.ts";
export * from "./model.ts";
export { PageCalls } from "./pages.ts";
export * from "./program.ts";
export * from "./sequences.ts";
export * from "./shapes.ts";
export * from "./step.ts";
export * from "./weight.ts";
export { CancelledError } from "./status.ts";
