/**
 * `deno task bench`: tokens a second of one request, decoding and prefilling, and what share of the
 * memory's bandwidth that is. Prints a table and writes bench/results/NAME.csv. Without arguments:
 * models/nano.
 */
import type { Model } from "../mod.ts";
import {
  median,
  peakRss,
  printTable,
  provenance,
  type Row,
  writeCsv,
} from "./report.ts";
import {
  openModel,
  parseSource,
  randomTokens,
  SOURCE_USAGE,
  type SourceOptions,
} from "./source.ts";
import { bytesPerToken } from "./traffic.ts";

/** One thing that is measured. */
interface Phase {
  phase: "decode" | "prefill";
  /** Tokens of the clock. */
  tokens: number;
  /** Tokens that are there before. */
  context: number;
}

const PHASES: readonly Phase[] = [
  { phase: "decode", tokens: 64, context: 16 },
  { phase: "prefill", tokens: 128, context: 0 },
  { phase: "prefill", tokens: 512, context: 0 },
];

/** Milliseconds that a phase takes once. Each run has tokens of its own. */
async function measure(
  model: Model,
  { phase, tokens, context }: Phase,
  run: number,
): Promise<number> {
  const { vocab_size } = model.config;
  if (phase === "prefill") {
    const ids = randomTokens(tokens, vocab_size, run);
    const started = performance.now();
    await model.forward(ids);
    return performance.now() - started;
  }
  const ids = randomTokens(context, vocab_size, run);
  // The first token comes from the prompt's last row: the clock starts with it.
  const { timings } = await model.generate(ids, {
    maxTokens: tokens + 1,
    temperature: 0,
    ignoreEos: true,
    reusePrefix: false,
  }).result();
  return timings.decodeMs;
}

function elementBytes(type: string): number {
  const bytes = new Map([["f32", 4], ["bf16", 2]]).get(type);
  if (bytes === undefined) throw new Error(`Unknown type ${type}`);
  return bytes;
}

async function bench(options: SourceOptions): Promise<Row[]> {
  const { model, shape } = await openModel(options);
  await using _ = model;
  const { config } = model;
  const { device, weightsType: type } = model.inspect();
  const info = device.info();
  const where = await provenance();
  using cache = model.createCache();
  // Before bandwidth is measured, which takes memory of its own.
  const peaks: number[] = [];
  for (const phase of PHASES) {
    await measure(model, phase, 0);
    peaks.push(await peakRss());
  }
  // The best before and after each phase: what others leave of the memory changes with time.
  let bandwidth = await device.bandwidth();
  const seconds: number[] = [];
  for (const phase of PHASES) {
    const times: number[] = [];
    for (let run = 1; run <= options.runs; run++) {
      times.push(await measure(model, phase, run));
    }
    seconds.push(median(times) / 1000);
    bandwidth = Math.max(bandwidth, await device.bandwidth());
  }
  return PHASES.map(({ phase, tokens, context }, i) => {
    const rate = tokens / seconds[i];
    const read = bytesPerToken(config, {
      weightBytes: elementBytes(type),
      cacheBytes: elementBytes(cache.type),
      rows: phase === "decode" ? 1 : tokens,
      context: phase === "decode" ? context + tokens / 2 : 1,
    });
    return {
      machine: where.machine,
      cpu: info.name,
      kernels: info.kernels,
      threads: info.threads,
      commit: where.commit,
      build: device.library.buildId,
      shape,
      layers: config.num_hidden_layers,
      weights: type,
      cache: cache.type,
      phase,
      tokens,
      context,
      batch: 1,
      tokens_per_second: rate.toPrecision(4),
      bytes_per_token: Math.round(read),
      share_of_bandwidth: (rate * read / bandwidth).toFixed(3),
      bandwidth: bandwidth.toExponential(3),
      peak_rss: peaks[i],
    };
  });
}

async function main() {
  const options = parseSource(Deno.args);
  if (!options) return console.log(`Usage: main.ts [options]\n${SOURCE_USAGE}`);
  const [load] = Deno.loadavg();
  if (load > 0.5) {
    console.error(
      `The load average is ${load.toFixed(1)}: others run here, too`,
    );
  }
  const rows = await bench(options);
  printTable(rows, [
    "shape",
    "layers",
    "weights",
    "phase",
    "tokens",
    "tokens_per_second",
    "bytes_per_token",
    "share_of_bandwidth",
    "bandwidth",
    "peak_rss",
  ]);
  const { shape, layers, weights } = rows[0];
  const name = options.name ?? `${shape}-${layers}-${weights}`;
  console.log(await writeCsv(name, rows));
}

try {
  await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  Deno.exit(1);
}
