/**
 * A model on the GPU through `model.generate()`, V2-Lite's shapes filled by the generator: tokens a
 * second decoding and prefilling, and the share of the memory's bandwidth. Prints a table and writes
 * bench/results/NAME.csv.
 *
 * Usage: deno run -A bench/cuda.ts [--weights bf16,int8,fp8,int4] [--layers 27] [--runs 5]
 *        [--commit ID] [--phases decode,long,prefill,batch] [--kernels sm90-persistent]
 */
import { parseArgs } from "node:util";
import { DType } from "../ffi/mod.ts";
import type { LoadOptions, Model } from "../mod.ts";
import { parseConfig } from "../src/model/config.ts";
import { CUDA_LIMITS } from "../src/generate/engine.ts";
import { buildModel } from "../src/model/load.ts";
import { generatedSource } from "../src/weights/bind.ts";
import {
  median,
  printTable,
  provenance,
  type Row,
  writeCsv,
} from "./report.ts";
import { shapeConfig } from "./shapes.ts";
import { randomTokens } from "./source.ts";
import { bytesPerToken } from "./traffic.ts";

type WeightsType = "bf16" | "int8" | "fp8" | "int4";

const { values } = parseArgs({
  args: Deno.args,
  options: {
    weights: { type: "string", default: "bf16" },
    layers: { type: "string", default: "27" },
    runs: { type: "string", default: "5" },
    commit: { type: "string" },
    kernels: { type: "string" },
    phases: { type: "string", default: "decode,long,prefill,batch" },
    name: { type: "string", default: "cuda-v2-lite" },
  },
});

/** Bytes of a weight with its scales; of the types of csrc/include/moela.h. */
const WEIGHT_BYTES = {
  bf16: 2,
  int8: 1 + 2 / 128,
  fp8: 1 + 4 / 128 ** 2,
  int4: 0.5 + 4 / 128,
} as const;

interface Phase {
  kind: string;
  phase: "decode" | "prefill";
  /** Of the clock, a sequence. */
  tokens: number;
  context: number;
  batch: number;
}

const PHASES: readonly Phase[] = [
  { kind: "decode", phase: "decode", tokens: 256, context: 16, batch: 1 },
  { kind: "long", phase: "decode", tokens: 128, context: 32_768, batch: 1 },
  { kind: "prefill", phase: "prefill", tokens: 512, context: 0, batch: 1 },
  { kind: "prefill", phase: "prefill", tokens: 4096, context: 0, batch: 1 },
  { kind: "batch", phase: "decode", tokens: 128, context: 1024, batch: 64 },
  { kind: "batch", phase: "decode", tokens: 128, context: 1024, batch: 256 },
];

const kernels = values.kernels as LoadOptions["kernels"];

async function open(weights: WeightsType): Promise<Model> {
  const config = parseConfig(shapeConfig("v2-lite", Number(values.layers)), "");
  return await buildModel({
    config,
    source: () => generatedSource(config, 1, "bf16"),
    fingerprint: () => Promise.resolve(JSON.stringify([config, weights])),
    bytes: 1,
  }, { device: "cuda", weights, maxBatch: 256, kernels });
}

/** Tokens of prompts that are read in a step in which others decode. */
const SHARED = CUDA_LIMITS.shared;

/** Steps of a phase in which some decode and others do not yet. */
function sharedSteps({ batch, context }: Pick<Phase, "batch" | "context">) {
  return batch > 1 ? Math.ceil(batch * context / SHARED) : 0;
}

/** Seconds of a phase, all sequences together. */
async function measure(
  model: Model,
  { phase, tokens, context, batch }: Phase,
  run: number,
): Promise<number> {
  const { vocab_size } = model.config;
  if (phase === "prefill") {
    const ids = randomTokens(tokens, vocab_size, run);
    const started = performance.now();
    await model.generate(ids, {
      maxTokens: 1,
      temperature: 0,
      reusePrefix: false,
    }).result();
    return (performance.now() - started) / 1000;
  }
  // Those that come first decode while the others' prompts are read, a step for SHARED of their
  // tokens: they go on so much longer.
  const shared = sharedSteps({ batch, context });
  const generations = Array.from(
    { length: batch },
    (_, i) =>
      model.generate(randomTokens(context, vocab_size, run * 1000 + i), {
        maxTokens: tokens + shared + 1,
        temperature: 0,
        ignoreEos: true,
        reusePrefix: false,
      }),
  );
  if (batch === 1) {
    return (await generations[0].result()).timings.decodeMs / 1000;
  }
  const drawn = await Promise.all(generations.map(async (generation) => {
    const times: number[] = [];
    for await (const { tokens } of generation) {
      for (const _ of tokens) times.push(performance.now());
    }
    return times;
  }));
  // From when the last of them has its first token until one has ended: all decode together.
  const last = Math.max(...drawn.map((times) => times[0]));
  const first = Math.min(...drawn.map((times) => times.at(-1)!));
  const count = drawn.flat().filter((time) => time > last && time <= first);
  if (count.length < batch) throw new Error("they did not decode together");
  return (first - last) / 1000 * batch * tokens / count.length;
}

const rows: Row[] = [];
const { machine, commit } = await provenance();
const wanted = values.phases.split(",");
for (const weights of values.weights.split(",") as WeightsType[]) {
  if (!(weights in WEIGHT_BYTES) || !(weights in DType)) {
    throw new RangeError(`--weights has ${weights}, which is not known`);
  }
  const started = performance.now();
  await using model = await open(weights);
  const load = (performance.now() - started) / 1000;
  const { device } = model.inspect();
  const info = device.info();
  const bandwidth = await device.bandwidth();
  console.error(`${weights}: ready in ${load.toFixed(1)} s`);
  for (const phase of PHASES.filter(({ kind }) => wanted.includes(kind))) {
    try {
      await measure(model, phase, 0);
      const seconds: number[] = [];
      for (let run = 1; run <= Number(values.runs); run++) {
        seconds.push(await measure(model, phase, run));
      }
      const rate = phase.tokens * phase.batch / median(seconds);
      const read = bytesPerToken(model.config, {
        weights,
        cache: "bf16",
        rows: phase.phase === "decode" ? phase.batch : phase.tokens,
        context: phase.phase === "decode"
          ? phase.context + (phase.tokens + sharedSteps(phase)) / 2
          : 1,
      });
      rows.push({
        machine,
        gpu: info.name,
        kernels: info.kernels,
        commit: values.commit ?? commit,
        build: device.library.buildId,
        shape: "v2-lite",
        layers: values.layers,
        weights,
        phase: phase.phase,
        tokens: phase.tokens,
        context: phase.context,
        batch: phase.batch,
        tokens_per_second: rate.toPrecision(4),
        share_of_bandwidth: (rate * read / bandwidth).toFixed(3),
        bandwidth: bandwidth.toExponential(3),
      });
      console.error(
        `${weights} ${phase.phase} ${phase.tokens} at ${phase.context} x ${phase.batch}: ${
          rate.toPrecision(4)
        } tokens/s`,
      );
    } catch (error) {
      console.error(`${weights} ${JSON.stringify(phase)}: ${error}`);
    }
  }
}
if (rows.length > 0) {
  printTable(rows, Object.keys(rows[0]).slice(5));
  console.log(await writeCsv(values.name, rows));
}
