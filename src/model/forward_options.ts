import { checkChoice, checkOptionsObject, checkSignal } from "../arguments.ts";
import type { Cache } from "../cache/cache.ts";

/** Options of `model.forward()` and `model.score()`. */
export interface ForwardOptions {
  /** Where the tokens are appended; a fresh one when absent. */
  cache?: Cache;
  /** Logits of which tokens; default "last". */
  logits?: "last" | "all";
  /** Stops the call within one step; it then rejects with `signal.reason`. */
  signal?: AbortSignal;
}

const KNOWN = ["cache", "logits", "signal"];

/** @throws TypeError for a wrong type or an unknown option, RangeError for a value */
export function checkForwardOptions(options: ForwardOptions, what: string) {
  checkOptionsObject(what, options, KNOWN);
  const { logits = "last", signal } = options;
  checkChoice(what, "logits", logits, ["last", "all"]);
  checkSignal(what, signal);
}
