/**
 * `deno task bench`: tokens a second of one request, decoding and prefilling, and what share of the
 * memory's bandwidth that is. Prints a table and writes bench/results/NAME.csv. Without arguments:
 * models/nano.
 */
import type { WeightDType } from "../ffi/mod.ts";
import { measure, type Phase } from "./phase.ts";
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
  SOURCE_USAGE,
  type SourceOptions,
} from "./source.ts";
import { bytesPerToken } from "./traffic.ts";

const DECODED = 32;
const CUDA_KERNELS: readonly string[] = ["generic", "sm90", "sm90-persistent"];

/** What the options ask for, as far as the model takes it. */
function phasesOf(options: SourceOptions, maximum: number): Phase[] {
  const decode = options.batch.flatMap((batch) =>
    options.decode.map((context): Phase => ({
      phase: "decode",
      tokens: DECODED,
      context,
      batch,
    }))
  );
  const prefill = options.prefill.map((tokens): Phase => ({
    phase: "prefill",
    tokens,
    context: 0,
    batch: 1,
  }));
  return [...decode, ...prefill].filter(({ tokens, context }) =>
    context + tokens < maximum
  );
}

const WEIGHTS: readonly WeightDType[] = ["f32", "bf16", "fp8", "int8", "int4"];

function weightType(name: string): WeightDType {
  const type = WEIGHTS.find((type) => type === name);
  if (type === undefined) throw new Error(`Unknown type ${name}`);
  return type;
}

async function bench(options: SourceOptions): Promise<Row[]> {
  const { model, shape } = await openModel(options);
  await using _ = model;
  const { config } = model;
  const { device, weightsType } = model.inspect();
  const info = device.info();
  const where = await provenance();
  using cache = model.createCache({ type: options.cache });
  const phases = phasesOf(options, config.max_position_embeddings);
  // Before bandwidth is measured, which takes memory of its own.
  const peaks: number[] = [];
  for (const phase of phases) {
    await measure(model, options.cache, phase, 0);
    peaks.push(await peakRss());
  }
  // The best before and after each phase: what others leave of the memory changes with time.
  let bandwidth = await device.bandwidth();
  const seconds: number[] = [];
  for (const phase of phases) {
    const times: number[] = [];
    for (let run = 1; run <= options.runs; run++) {
      times.push(await measure(model, options.cache, phase, run));
    }
    seconds.push(median(times) / 1000);
    bandwidth = Math.max(bandwidth, await device.bandwidth());
  }
  return phases.map(({ phase, tokens, context, batch }, i) => {
    const rate = batch * tokens / seconds[i];
    const read = bytesPerToken(config, {
      weights: weightType(weightsType),
      cache: cache.type,
      rows: phase === "decode" ? batch : tokens,
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
      weights: weightsType,
      cache: cache.type,
      phase,
      tokens,
      context,
      batch,
      cache_bytes_per_token: cache.bytesPerToken,
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
    "cache",
    "phase",
    "tokens",
    "context",
    "batch",
    "tokens_per_second",
    "bytes_per_token",
    "share_of_bandwidth",
    "bandwidth",
    "peak_rss",
  ]);
  const { shape, layers, weights, cache, kernels } = rows[0];
  // A GPU's figures are not to replace the CPU's.
  const device = CUDA_KERNELS.includes(String(kernels)) ? "cuda-" : "";
  const name = options.name ??
    `${device}${shape}-${layers}-${weights}-${cache}`;
  console.log(await writeCsv(name, rows));
}

try {
  await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  Deno.exit(1);
}
