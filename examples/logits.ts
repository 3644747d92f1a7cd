/**
 * The most likely next tokens of a prompt, from one `forward()`.
 *
 * Run: deno run --allow-read --allow-ffi=build examples/logits.ts "Once upon a"
 *
 * Usage: logits.ts [--model FOLDER] [--top N] [PROMPT]
 */
import { parseArgs } from "node:util";
import { loadModel } from "../mod.ts";

/** Log-softmax: logits minus the logarithm of the sum of their exponentials. */
function logSoftmax(logits: Float32Array): Float64Array {
  const max = logits.reduce((a, b) => Math.max(a, b));
  const sum = logits.reduce((sum, logit) => sum + Math.exp(logit - max), 0);
  return Float64Array.from(logits, (logit) => logit - max - Math.log(sum));
}

async function main() {
  const { values, positionals } = parseArgs({
    args: Deno.args,
    allowPositionals: true,
    options: {
      model: { type: "string" },
      top: { type: "string", default: "10" },
    },
  });
  const top = Number(values.top);
  if (!Number.isInteger(top) || top < 1) {
    throw new RangeError(
      `--top is "${values.top}", and must be an integer of at least 1`,
    );
  }
  const prompt = positionals.join(" ") || "Once upon a";
  const folder = values.model ?? new URL("../models/nano", import.meta.url);

  await using model = await loadModel(folder);
  const { tokenizer } = model;
  const tokens = tokenizer.encode(prompt);
  const logprobs = logSoftmax(await model.forward(tokens));

  console.log(`${tokens.length} tokens: ${show(tokenizer.pieces(tokens))}`);
  const best = Array.from(logprobs.keys())
    .sort((a, b) => logprobs[b] - logprobs[a])
    .slice(0, top);
  for (const id of best) {
    const percent = (100 * Math.exp(logprobs[id])).toFixed(2).padStart(6);
    const token = JSON.stringify(tokenizer.decode([id]));
    console.log(`${percent} %  ${String(id).padStart(6)}  ${token}`);
  }
}

function show(pieces: readonly string[]): string {
  return pieces.map((piece) => JSON.stringify(piece)).join(" ");
}

try {
  await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  Deno.exit(1);
}
