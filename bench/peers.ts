/**
 * moela beside llama.cpp as npm's node-llama-cpp ships it, on the same shape, layers and bits: turn
 * by turn in one run, both resident, medians. Writes bench/results/peers-NAME.csv.
 *
 * Needs Node and npm. node-llama-cpp is installed on demand to a folder of its own, and the GGUF
 * file, of random weights, is removed in the end.
 */
import { parseArgs } from "node:util";
import type { Model } from "../mod.ts";
import {
  GGUF_NAMES,
  type GgufLayout,
  type GgufWeights,
  writeGguf,
} from "./peers/gguf.ts";
import { measure, type Phase } from "./phase.ts";
import {
  median,
  peakRss,
  printTable,
  provenance,
  type Row,
  writeCsv,
} from "./report.ts";
import { integer, openModel } from "./source.ts";
import { bytesPerToken } from "./traffic.ts";

const PEER = "node-llama-cpp@3.22.1";
const USAGE = `Usage: peers.ts [options]
  --weights TYPE   int8 (Q8_0), int4 (Q4_0) or bf16 (int8)
  --layers N       of V2-Lite (6). With 24 GB: int4 27, int8 12, bf16 6
  --prefill LIST   tokens (128,512); 0: none
  --decode LIST    tokens held before (0); the caches' contents are made up
  --tokens N       that are decoded (32)
  --threads N      of both (all)
  --runs N         of which the median counts (5)
  --kernels SET    of moela (the best)
  --layout LAYOUT  of the file: split (kv_b_proj as two tensors, the default), or kv_b (as one), which
                   processors with AMX need
  --folder DIR     where node-llama-cpp is installed (build/peers)
  --runtime NAME   what runs it: node or deno (node)
  --hold           load, then wait for a line on standard input before anything is measured
  --gguf DIR       where the file is written (/tmp)
  --name NAME      of the CSV file`;

const WEIGHTS: readonly GgufWeights[] = ["int8", "int4", "bf16"];
const LAYOUTS: readonly GgufLayout[] = ["split", "kv_b"];
const KERNELS = ["reference", "avx2", "avx512", "amx"] as const;

function parse(args: string[]) {
  const { values } = parseArgs({
    args,
    options: {
      weights: { type: "string", default: "int8" },
      layers: { type: "string", default: "6" },
      prefill: { type: "string", default: "128,512" },
      decode: { type: "string", default: "0" },
      tokens: { type: "string", default: "32" },
      threads: { type: "string" },
      runs: { type: "string", default: "5" },
      kernels: { type: "string" },
      layout: { type: "string", default: "split" },
      runtime: { type: "string", default: "node" },
      hold: { type: "boolean", default: false },
      folder: { type: "string", default: "build/peers" },
      gguf: { type: "string", default: "/tmp" },
      name: { type: "string" },
      help: { type: "boolean" },
    },
  });
  if (values.help) return undefined;
  const weights = WEIGHTS.find((type) => type === values.weights);
  if (!weights) throw new RangeError(`--weights is "${values.weights}"`);
  const layout = LAYOUTS.find((layout) => layout === values.layout);
  if (!layout) throw new RangeError(`--layout is "${values.layout}"`);
  const kernels = KERNELS.find((set) => set === values.kernels);
  if (kernels !== values.kernels) {
    throw new RangeError(`--kernels is "${values.kernels}"`);
  }
  const list = (name: "prefill" | "decode") =>
    values[name].split(",").map((text) =>
      text === "0" ? 0 : integer(name, text)
    );
  const tokens = integer("tokens", values.tokens);
  const layers = integer("layers", values.layers);
  const phases: Phase[] = [
    ...list("decode").map((context): Phase => (
      { phase: "decode", tokens, context, batch: 1 }
    )),
    ...list("prefill").filter((n) => n > 0).map((n): Phase => (
      { phase: "prefill", tokens: n, context: 0, batch: 1 }
    )),
  ];
  return {
    weights,
    layers,
    phases,
    threads: integer(
      "threads",
      values.threads ?? `${navigator.hardwareConcurrency}`,
    ),
    runs: integer("runs", values.runs),
    kernels,
    layout,
    command: values.runtime === "deno"
      ? [Deno.execPath(), "run", "-A", "--node-modules-dir=manual"]
      : [values.runtime],
    hold: values.hold,
    folder: values.folder,
    gguf: `${values.gguf}/peers-${layers}-${weights}.gguf`,
    name: values.name ?? `peers-v2-lite-${layers}-${weights}`,
  };
}

/** Installs the peer where it is not yet. */
async function install(folder: string) {
  const version = async () => {
    const path = `${folder}/node_modules/node-llama-cpp/package.json`;
    const text = await Deno.readTextFile(path).catch(() => "{}");
    return `node-llama-cpp@${JSON.parse(text).version}`;
  };
  if (await version() === PEER) return;
  await Deno.mkdir(folder, { recursive: true });
  // Without scripts: what it ships is what is measured, and nothing is built.
  const { success } = await new Deno.Command("npm", {
    args: ["install", "--prefix", folder, "--ignore-scripts", PEER],
    stdout: "null",
  }).output();
  if (!success) throw new Error(`npm could not install ${PEER}`);
}

/** The other engine, in a process of its own. */
class Peer {
  #child: Deno.ChildProcess;
  #writer: WritableStreamDefaultWriter<Uint8Array>;
  #lines: AsyncIterator<string>;

  constructor(
    { folder, gguf, threads, command: [program, ...args] }: Options,
    context: number,
  ) {
    const script = new URL("./peers/llama.mjs", import.meta.url).pathname;
    this.#child = new Deno.Command(program, {
      args: [...args, script, folder, gguf, `${threads}`, `${context}`],
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    this.#writer = this.#child.stdin.getWriter();
    this.#lines = lines(this.#child.stdout);
  }

  async #ask(question: unknown) {
    const text = JSON.stringify(question) + "\n";
    await this.#writer.write(new TextEncoder().encode(text));
    const { value, done } = await this.#lines.next();
    if (done) throw new Error("node-llama-cpp ended");
    return JSON.parse(value);
  }

  /** Milliseconds. */
  async measure(phase: Phase): Promise<number> {
    return (await this.#ask(phase)).ms;
  }

  async info(): Promise<
    { release: string; library: string; peakRss: number }
  > {
    return await this.#ask({ phase: "info" });
  }

  async close() {
    await this.#writer.close();
    await this.#child.status;
  }
}

/** The lines of a stream. */
async function* lines(stream: ReadableStream<Uint8Array>) {
  let text = "";
  for await (const part of stream.pipeThrough(new TextDecoderStream())) {
    const all = (text + part).split("\n");
    text = all.pop() ?? "";
    yield* all;
  }
}

type Options = NonNullable<ReturnType<typeof parse>>;

async function compare(model: Model, peer: Peer, options: Options) {
  const { phases, runs, weights, layout } = options;
  const { device, weightsType } = model.inspect();
  const where = await provenance();
  const { name: cpu, kernels, threads } = device.info();
  for (const phase of phases) {
    await measure(model, undefined, phase, 0);
    await peer.measure(phase);
  }
  const peaks = [await peakRss(), (await peer.info()).peakRss];
  const { release, library } = await peer.info();
  let bandwidth = await device.bandwidth();
  const times: [number, number][][] = [];
  for (const phase of phases) {
    const both: [number, number][] = [];
    for (let run = 1; run <= runs; run++) {
      both.push([
        await measure(model, undefined, phase, run),
        await peer.measure(phase),
      ]);
    }
    times.push(both);
    bandwidth = Math.max(bandwidth, await device.bandwidth());
  }
  return phases.map(({ phase, tokens, context }, i): Row => {
    const rates = [0, 1].map((who) =>
      median(times[i].map((both) => tokens / both[who] * 1000))
    );
    const read = bytesPerToken(model.config, {
      weights,
      cache: "bf16",
      rows: phase === "decode" ? 1 : tokens,
      context: phase === "decode" ? context + tokens / 2 : 1,
    });
    return {
      machine: where.machine,
      cpu,
      kernels,
      threads,
      commit: where.commit,
      build: device.library.buildId,
      peer: `${PEER} ${release} ${library}`,
      shape: "v2-lite",
      layers: model.config.num_hidden_layers,
      weights: weightsType,
      peer_weights: GGUF_NAMES[weights],
      peer_layout: layout,
      phase,
      tokens,
      context,
      runs,
      tokens_per_second: rates[0].toPrecision(4),
      peer_tokens_per_second: rates[1].toPrecision(4),
      ratio: median(times[i].map(([ours, theirs]) => theirs / ours))
        .toPrecision(3),
      bytes_per_token: Math.round(read),
      share_of_bandwidth: (rates[0] * read / bandwidth).toFixed(3),
      bandwidth: bandwidth.toExponential(3),
      peak_rss: peaks[0],
      peer_peak_rss: peaks[1],
    };
  });
}

async function main() {
  const options = parse(Deno.args);
  if (!options) return console.log(USAGE);
  const { weights, layers, threads, kernels, layout, phases, gguf, name } =
    options;
  await install(options.folder);
  const { model } = await openModel({
    generated: true,
    shape: "v2-lite",
    layers,
    weights,
    device: "cpu",
    threads,
    kernels,
    prefill: [],
    decode: [],
    batch: [],
    runs: 1,
  });
  await using _ = model;
  let peer: Peer | undefined;
  try {
    await writeGguf(gguf, model.config, weights, layout);
    const longest = Math.max(
      ...phases.map(({ tokens, context }) => context + tokens),
    );
    peer = new Peer(options, longest + 64);
    const loaded = await peer.info();
    console.log(`${layers} layers, ${weights}: ${loaded.library} has loaded`);
    if (options.hold) await Deno.stdin.read(new Uint8Array(1));
    const rows = await compare(model, peer, options);
    printTable(rows, [
      "layers",
      "weights",
      "phase",
      "tokens",
      "context",
      "tokens_per_second",
      "peer_tokens_per_second",
      "ratio",
      "share_of_bandwidth",
      "bandwidth",
      "peak_rss",
      "peer_peak_rss",
    ]);
    console.log(await writeCsv(name, rows));
  } finally {
    await peer?.close();
    await Deno.remove(gguf).catch(() => {});
  }
}

try {
  await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  Deno.exit(1);
}
