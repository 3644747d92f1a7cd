import { ControlWord, OpKind } from "./enums.ts";
import type { NativeStep } from "./step.ts";
import type { ProgramRecorder } from "./program.ts";

const OUTPUTS: readonly unknown[] = [
  OpKind.logits_out,
  OpKind.logprob,
  OpKind.sample,
];

/** Width of the logits that a program gives; 0 when it gives none. */
export function logitsWidth(program: ProgramRecorder): number {
  return program.ops.reduce(
    (width, { kind, n = [] }) =>
      OUTPUTS.includes(kind) ? Math.max(width, n[0] ?? 0) : width,
    0,
  );
}

/** @throws RangeError when an array that the library reads or writes is too short. */
export function checkRoom(
  what: string,
  name: string,
  array: { readonly length: number } | undefined,
  needed: number,
) {
  if (array === undefined || array.length >= needed) return;
  throw new RangeError(
    `Cannot ${what}: ${name} has ${array.length} elements, and ${needed} are needed`,
  );
}

/**
 * Checks that the arrays of a step are as long as the step says: what the library cannot see.
 *
 * @param width of the program's logits
 * @throws RangeError
 */
export function checkStep(step: NativeStep, width: number) {
  const n = step.logitRows.length;
  const room = (
    name: "targets" | "logprobs" | "logits" | "control",
    needed: number,
  ) => checkRoom("run the step", name, step[name], needed);
  room("control", ControlWord.words);
  room("targets", n);
  room("logprobs", n);
  room("logits", n * width);
  if (!step.sampling?.length) return;
  const { steps = 1, entryWords = 4, entries = [] } = step;
  checkRoom("run the step", "entries", entries, n * steps * entryWords);
}
