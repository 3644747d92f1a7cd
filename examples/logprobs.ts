/**
 * What the model thought at each token: its probability, and the likeliest alternatives.
 *
 * Run: deno run --allow-read --allow-ffi=build examples/logprobs.ts
 *
 * Usage: logprobs.ts [--tokens N] [--top N] [PROMPT]
 */
import { parseArgs } from "node:util";
import { loadModel } from "../mod.ts";

async function main() {
  const { values, positionals } = parseArgs({
    args: Deno.args,
    allowPositionals: true,
    options: {
      tokens: { type: "string", default: "12" },
      top: { type: "string", default: "3" },
    },
  });
  const prompt = positionals.join(" ") || "Once upon a time";
  const percent = (logprob: number) =>
    `${(100 * Math.exp(logprob)).toFixed(1).padStart(5)} %`;

  await using model = await loadModel(
    new URL("../models/nano", import.meta.url),
  );
  const generation = model.generate(prompt, {
    maxTokens: Number(values.tokens),
    temperature: 0,
    logprobs: Number(values.top),
  });
  // They come in the same pass as the tokens, while the text streams.
  for await (const { logprobs = [] } of generation) {
    for (const { text, logprob, top } of logprobs) {
      const others = top.map((other) =>
        `${JSON.stringify(other.text)} ${percent(other.logprob).trim()}`
      );
      const shown = JSON.stringify(text).padEnd(14);
      console.log(`${shown} ${percent(logprob)}   ${others.join(", ")}`);
    }
  }
}

try {
  await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  Deno.exit(1);
}
