/**
 * Metrics in the text format of Prometheus.
 *
 * @module
 */

type Labels = Readonly<Record<string, string>>;

function labelText(labels: Labels): string {
  const list = Object.entries(labels).map(([name, value]) =>
    `${name}=${JSON.stringify(value)}`
  );
  return list.length > 0 ? `{${list.join(",")}}` : "";
}

/** Grows only. */
export class Counter {
  readonly #values = new Map<string, number>();

  /** Adds to the series with these labels. */
  add(count = 1, labels?: Labels) {
    const key = labels ? labelText(labels) : "";
    this.#values.set(key, (this.#values.get(key) ?? 0) + count);
  }

  /** The lines of its series. */
  *lines(name: string): Iterable<string> {
    if (this.#values.size === 0) yield `${name} 0`;
    for (const [labels, value] of this.#values) {
      yield `${name}${labels} ${value}`;
    }
  }
}

/** How often a number was at most so large. */
export class Histogram {
  readonly #bounds: readonly number[];
  readonly #counts: number[];
  #count = 0;
  #sum = 0;

  /** @param bounds ascending; the last bucket, without a bound, is added */
  constructor(bounds: readonly number[]) {
    this.#bounds = bounds;
    this.#counts = bounds.map(() => 0);
  }

  /** Counts one. */
  observe(value: number) {
    this.#count++;
    this.#sum += value;
    for (let i = 0; i < this.#bounds.length; i++) {
      if (value <= this.#bounds[i]) {
        this.#counts[i]++;
        return;
      }
    }
  }

  /** The lines of its buckets, cumulative, and of sum and count. */
  *lines(name: string): Iterable<string> {
    let below = 0;
    for (const [i, bound] of this.#bounds.entries()) {
      below += this.#counts[i];
      yield `${name}_bucket{le="${bound}"} ${below}`;
    }
    yield `${name}_bucket{le="+Inf"} ${this.#count}`;
    yield `${name}_sum ${this.#sum}`;
    yield `${name}_count ${this.#count}`;
  }
}

const SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];
const TOKEN_SECONDS = [0.001, 0.0025, ...SECONDS.slice(0, 9)];

/** Numbers of the moment, asked for when somebody looks. */
export interface Gauges {
  /** Generations in the engine's steps, and those that wait for a place there. */
  running: number;
  waiting: number;
  /** Requests that wait for a place in the server. */
  queued: number;
  /** Requests whose answer is not complete. */
  active: number;
  /** Bytes. */
  caches: number;
  prefixCache: number;
  weights: number;
  workspace: number;
}

/** All that the server counts. */
export class Metrics {
  readonly requests = new Counter();
  readonly aborted = new Counter();
  readonly promptTokens = new Counter();
  readonly cachedTokens = new Counter();
  readonly completionTokens = new Counter();
  readonly generations = new Counter();
  readonly prefixHits = new Counter();
  readonly firstToken = new Histogram(SECONDS);
  readonly betweenTokens = new Histogram(TOKEN_SECONDS);
  readonly duration = new Histogram([...SECONDS, 60, 120, 300, 600]);

  /** The page that Prometheus reads. */
  text(gauges: Gauges): string {
    const lines: string[] = [];
    const write = (
      name: string,
      type: string,
      help: string,
      series: Iterable<string>,
    ) => {
      lines.push(`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`, ...series);
    };
    const counter = (name: string, help: string, counted: Counter) =>
      write(name, "counter", help, counted.lines(name));
    const histogram = (name: string, help: string, counted: Histogram) =>
      write(name, "histogram", help, counted.lines(name));
    const gauge = (name: string, help: string, ...series: string[]) =>
      write(name, "gauge", help, series.map((each) => name + each));

    counter(
      "moela_requests_total",
      "Requests answered, by endpoint and status.",
      this.requests,
    );
    counter(
      "moela_requests_aborted_total",
      "Requests whose client left before the end.",
      this.aborted,
    );
    gauge(
      "moela_requests_active",
      "Requests whose answer is not complete.",
      ` ${gauges.active}`,
    );
    gauge(
      "moela_queue_requests",
      "Requests that wait for a place in the server.",
      ` ${gauges.queued}`,
    );
    gauge(
      "moela_engine_requests",
      "Generations in the engine's steps, and waiting for one.",
      `{state="running"} ${gauges.running}`,
      `{state="waiting"} ${gauges.waiting}`,
    );
    counter(
      "moela_generations_total",
      "Generations ended, by reason.",
      this.generations,
    );
    counter(
      "moela_prompt_tokens_total",
      "Tokens of prompts.",
      this.promptTokens,
    );
    counter(
      "moela_prompt_tokens_cached_total",
      "Tokens of prompts that the prefix cache held.",
      this.cachedTokens,
    );
    counter(
      "moela_prefix_hits_total",
      "Generations that found a part of their prompt in the prefix cache.",
      this.prefixHits,
    );
    counter(
      "moela_completion_tokens_total",
      "Tokens generated.",
      this.completionTokens,
    );
    histogram(
      "moela_time_to_first_token_seconds",
      "From the request to its first token.",
      this.firstToken,
    );
    histogram(
      "moela_time_between_tokens_seconds",
      "From a token of a generation to the next.",
      this.betweenTokens,
    );
    histogram(
      "moela_request_duration_seconds",
      "From the request to the end of its answer.",
      this.duration,
    );
    gauge(
      "moela_memory_bytes",
      "Bytes that the model holds, by use.",
      ...(["weights", "caches", "prefixCache", "workspace"] as const).map(
        (use) => `{use="${use}"} ${gauges[use]}`,
      ),
    );
    return lines.join("\n") + "\n";
  }
}
