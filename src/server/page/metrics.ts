/** Numbers of the server's `/metrics` over time. */

/** What is plotted of one moment. */
export interface Reading {
  /** Seconds since 1970. */
  time: number;
  /** Generated since the server started. */
  tokens: number;
  /** Bytes of caches in use, those of prefixes included. */
  cacheBytes: number;
}

/** Reads Prometheus' text format: the sum of each series' values, by its name and labels. */
export function parseMetrics(text: string): Map<string, number> {
  const found = new Map<string, number>();
  for (const line of text.split("\n")) {
    const space = line.lastIndexOf(" ");
    if (line.startsWith("#") || space < 0) continue;
    found.set(line.slice(0, space), Number(line.slice(space + 1)));
  }
  return found;
}

/** What is plotted, from the text of `/metrics`. */
export function readMetrics(text: string, time: number): Reading {
  const metrics = parseMetrics(text);
  const memory = (use: string) =>
    metrics.get(`moela_memory_bytes{use="${use}"}`) ?? 0;
  return {
    time,
    tokens: metrics.get("moela_completion_tokens_total") ?? 0,
    cacheBytes: memory("caches") + memory("prefixCache"),
  };
}

/** Seconds that are plotted. */
export const WINDOW = 60;

/** The readings of the last minute. */
export class History {
  readonly #readings: Reading[] = [];

  add(reading: Reading) {
    const last = this.#readings.at(-1);
    // The server was started anew: what it counts begins at 0.
    if (last && reading.tokens < last.tokens) this.#readings.length = 0;
    this.#readings.push(reading);
    // One beyond the edge, so that the line begins there.
    while (
      this.#readings.length > 2 &&
      this.#readings[1].time <= reading.time - WINDOW
    ) this.#readings.shift();
  }

  /** Times, tokens a second since the reading before, and megabytes of cache. */
  columns(): [number[], (number | null)[], number[]] {
    const list = this.#readings;
    return [
      list.map(({ time }) => time),
      list.map(({ time, tokens }, i) =>
        i === 0
          ? null
          : (tokens - list[i - 1].tokens) / (time - list[i - 1].time)
      ),
      list.map(({ cacheBytes }) => cacheBytes / 1e6),
    ];
  }
}
