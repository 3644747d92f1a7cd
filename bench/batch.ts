/**
 * What sharing steps brings: fifty requests of mixed length at once, beside the same one by one.
 * The tokens must be the same; prints tokens a second of both and their ratio, turn by turn.
 *
 * Usage: deno run -A bench/batch.ts [--model models/nano] [--device cpu|cuda|auto] [--runs 5]
 */
import { parseArgs } from "node:util";
import { loadModel, type Model } from "../mod.ts";
import { median } from "./report.ts";
import { BENCH_DEVICES } from "./source.ts";

const { values } = parseArgs({
  args: Deno.args,
  options: {
    model: { type: "string", default: "models/nano" },
    device: { type: "string", default: "auto" },
    runs: { type: "string", default: "5" },
  },
});

interface Request {
  tokens: number[];
  maxTokens: number;
  seed: number;
}

/** Prompts of 1 to 80 tokens, answers of 20 to 120: a mix that a seed fixes. */
function mixedRequests(vocab_size: number): Request[] {
  let state = 1;
  const below = (n: number) => {
    state = (state * 48271) % 0x7fffffff;
    return state % n;
  };
  return Array.from({ length: 50 }, (_, seed) => ({
    tokens: Array.from({ length: 1 + below(80) }, () => below(vocab_size)),
    maxTokens: 20 + below(101),
    seed,
  }));
}

const generate = (model: Model, { tokens, maxTokens, seed }: Request) =>
  model.generate(tokens, {
    maxTokens,
    seed,
    temperature: 0.8,
    ignoreEos: true,
    reusePrefix: false,
  }).result();

const device = BENCH_DEVICES.find((name) => name === values.device);
if (device === undefined) {
  throw new RangeError(
    `--device is "${values.device}", and must be one of ${
      BENCH_DEVICES.join(", ")
    }`,
  );
}
await using model = await loadModel(values.model, { device });
const requests = mixedRequests(model.config.vocab_size);
const total = requests.reduce((sum, { maxTokens }) => sum + maxTokens, 0);
const rates = { alone: [] as number[], together: [] as number[] };
for (let run = 0; run < Number(values.runs); run++) {
  const alone: number[][] = [];
  let started = performance.now();
  for (const request of requests) {
    alone.push((await generate(model, request)).tokens);
  }
  rates.alone.push(total / (performance.now() - started) * 1000);
  started = performance.now();
  const together = await Promise.all(
    requests.map(async (request) => (await generate(model, request)).tokens),
  );
  rates.together.push(total / (performance.now() - started) * 1000);
  if (JSON.stringify(alone) !== JSON.stringify(together)) {
    throw new Error("Requests beside others gave other tokens than alone");
  }
}
const [alone, together] = [median(rates.alone), median(rates.together)];
const ratio = median(rates.together.map((rate, i) => rate / rates.alone[i]));
console.log(
  `${total} tokens: one by one ${alone.toFixed(0)}, together ` +
    `${together.toFixed(0)} tokens a second, ratio ${ratio.toFixed(2)}`,
);
