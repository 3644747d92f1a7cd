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

/** @throws TypeError for a wrong type or an unknown option */
export function checkForwardOptions(options: ForwardOptions, what: string) {
  const fail = (problem: string) => {
    throw new TypeError(`Cannot ${what}: ${problem}`);
  };
  if (typeof options !== "object" || options === null) {
    fail(`options is ${options}, and must be an object`);
  }
  const { logits, signal } = options;
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    fail(`signal is ${signal}, and must be an AbortSignal`);
  }
  if (logits !== undefined && logits !== "last" && logits !== "all") {
    fail(`logits is ${logits}, and must be "last" or "all"`);
  }
  const known = ["cache", "logits", "signal"];
  const unknown = Object.keys(options).find((name) => !known.includes(name));
  if (unknown !== undefined) {
    fail(`${unknown} is not an option; there are ${known.join(", ")}`);
  }
}
