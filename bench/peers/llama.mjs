// llama.cpp through node-llama-cpp's public interface, on Node: measures what it is told to.
//
// node llama.mjs FOLDER MODEL.gguf THREADS CONTEXT
// FOLDER has node_modules. A line of JSON for each line of JSON: {phase, tokens, context} gives
// {ms}, {phase: "info"} gives {release, library, peakRss}.
import { readFileSync, rmSync } from "node:fs";
import { resolve } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { lengthen } from "./state.mjs";

const [folder, modelPath, threads, contextSize] = process.argv.slice(2);
const entry = resolve(folder, "node_modules/node-llama-cpp/dist/index.js");
const { getLlama } = await import(pathToFileURL(entry).href);

const llama = await getLlama({
  gpu: false,
  build: "never",
  maxThreads: +threads,
  logLevel: "error",
});
const model = await llama.loadModel({ modelPath });
const context = await model.createContext({
  contextSize: +contextSize,
  batchSize: 512,
  threads: { ideal: +threads, min: +threads },
  flashAttention: true,
});
const sequence = context.getSequence();
const options = { temperature: 0, yieldEogToken: true };

let state = 12345;
/** Ids of the vocabulary's fillers, which no merge makes. */
const randomIds = (n) =>
  Array.from({ length: n }, () => {
    state = Math.imul(state, 1664525) + 1013904223 >>> 0;
    return 1000 + Math.floor(state / 2 ** 32 * 90000);
  });

/** Milliseconds to the first token after a prompt of `tokens`. */
async function prefill(tokens) {
  await sequence.clearHistory();
  const ids = randomIds(tokens);
  const started = performance.now();
  const iterator = sequence.evaluate(ids, options);
  await iterator.next();
  const ms = performance.now() - started;
  await iterator.return();
  return ms;
}

/** Tokens that are computed where more are held. */
const COMPUTED = 64;

/** Fills the context with `held` tokens; speed does not depend on what they are. */
async function hold(held) {
  await sequence.clearHistory();
  const ids = randomIds(Math.min(held, COMPUTED));
  await sequence.evaluateWithoutGeneratingNewTokens(ids);
  if (held <= COMPUTED) return;
  const short = `${modelPath}.short`, long = `${modelPath}.long`;
  await sequence.saveStateToFile(short);
  lengthen(short, long, held);
  await sequence.clearHistory();
  await sequence.loadStateFromFile(long, { acceptRisk: true });
  for (const path of [short, long]) rmSync(path);
}

/** Milliseconds for `tokens` tokens after the first, greedily, behind `held` others. */
async function decode(tokens, held) {
  if (sequence.nextTokenIndex > held || held === 0) {
    await sequence.clearHistory();
  }
  if (sequence.nextTokenIndex < held) await hold(held);
  const iterator = sequence.evaluate(randomIds(1), options);
  await iterator.next();
  const started = performance.now();
  for (let i = 0; i < tokens; i++) await iterator.next();
  const ms = performance.now() - started;
  await iterator.return();
  // The context stays for the next run.
  const end = sequence.nextTokenIndex;
  if (held > 0) {
    await sequence.eraseContextTokenRanges([{ start: held, end }]);
  }
  return ms;
}

function info() {
  const status = readFileSync("/proc/self/status", "utf8");
  const maps = readFileSync("/proc/self/maps", "utf8");
  return {
    release: llama.llamaCppRelease.release,
    library: /libggml-cpu-[a-z0-9]+/.exec(maps)?.[0] ?? "",
    peakRss: Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1] ?? 0) * 1024,
  };
}

for await (const line of createInterface({ input: process.stdin })) {
  const { phase, tokens, context } = JSON.parse(line);
  const answer = phase === "info"
    ? info()
    : { ms: await (phase === "prefill" ? prefill : decode)(tokens, context) };
  console.log(JSON.stringify(answer));
}
process.exit(0);
