/**
 * Stop strings over text that comes in pieces.
 *
 * @module
 */

/** One stop string and how much of it the text ends with. */
interface Stop {
  readonly text: string;
  /** For each matched length, the length to go on from when the next differs. */
  readonly fallback: Int32Array;
  matched: number;
}

/** The failure function of Knuth, Morris and Pratt. */
function fallbacks(text: string): Int32Array {
  const table = new Int32Array(text.length + 1);
  for (let i = 1, k = 0; i < text.length; i++) {
    while (k > 0 && text[i] !== text[k]) k = table[k];
    if (text[i] === text[k]) k++;
    table[i + 1] = k;
  }
  return table;
}

/**
 * Finds the first stop string in text that comes in pieces, and holds back what
 * may be the beginning of one. The outcome does not depend on how the text was
 * cut: the stop string that is complete first ends it, the longest one where
 * several are.
 *
 * @example
 * ```ts
 * import { StopMatcher } from "./stop.ts";
 *
 * const matcher = new StopMatcher(["\n\nUser:"]);
 * console.assert(matcher.push("Hello!\n").text === "Hello!");
 * console.assert(matcher.push("\nUser: Bye").stopped);
 * ```
 */
export class StopMatcher {
  readonly #stops: readonly Stop[];
  #held = "";
  #stopped = false;

  /**
   * @param stops The stop strings.
   * @throws {RangeError} When one is empty.
   */
  constructor(stops: readonly string[]) {
    this.#stops = [...new Set(stops)].map((stop, i) => {
      if (stop === "") {
        throw new RangeError(
          `Cannot generate: stop string ${i} is empty, ` +
            "and must hold at least one character",
        );
      }
      // Generated text is well-formed, so that a lone surrogate in a stop
      // string can only mean U+FFFD.
      const text = stop.toWellFormed();
      return { text, fallback: fallbacks(text), matched: 0 };
    });
  }

  /**
   * Adds text.
   *
   * @returns `text` that may be shown, and whether a stop string was found: it
   * and what follows it are never shown, and later calls give nothing.
   */
  push(text: string): { text: string; stopped: boolean } {
    if (this.#stopped) return { text: "", stopped: true };
    if (this.#stops.length === 0) return { text, stopped: false };
    const all = this.#held + text;
    for (let i = 0; i < text.length; i++) {
      const found = this.#step(text[i]);
      if (found === 0) continue;
      this.#stopped = true;
      this.#held = "";
      const end = all.length - text.length + i + 1;
      return { text: all.slice(0, end - found), stopped: true };
    }
    let keep = 0;
    for (const stop of this.#stops) keep = Math.max(keep, stop.matched);
    this.#held = keep === 0 ? "" : all.slice(-keep);
    return { text: all.slice(0, all.length - keep), stopped: false };
  }

  /** Ends the text: what was held back and is no stop string after all. */
  flush(): string {
    const text = this.#held;
    this.#held = "";
    for (const stop of this.#stops) stop.matched = 0;
    return text;
  }

  /** Takes one code unit; the length of the longest stop string it completes. */
  #step(unit: string): number {
    let found = 0;
    for (const stop of this.#stops) {
      let k = stop.matched;
      while (k > 0 && stop.text[k] !== unit) k = stop.fallback[k];
      if (stop.text[k] === unit) k++;
      stop.matched = k;
      if (k === stop.text.length) found = Math.max(found, k);
    }
    return found;
  }
}
