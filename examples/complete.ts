/**
 * Streams a completion: `deno task demo "Once upon a time"`.
 *
 * Run: deno run --allow-read --allow-ffi=build examples/complete.ts "Once upon a time"
 *
 * Usage: complete.ts [--model FOLDER] [--tokens N] [--temperature T] [--seed N] [PROMPT]
 */
import { parseArgs } from "node:util";
import { type GenerateOptions, loadModel } from "../mod.ts";

async function main() {
  const { values, positionals } = parseArgs({
    args: Deno.args,
    allowPositionals: true,
    options: {
      model: { type: "string" },
      tokens: { type: "string", default: "200" },
      temperature: { type: "string" },
      seed: { type: "string" },
    },
  });
  const prompt = positionals.join(" ") || "Once upon a time";
  const folder = values.model ?? new URL("../models/nano", import.meta.url);
  const options: GenerateOptions = { maxTokens: Number(values.tokens) };
  if (values.temperature) options.temperature = Number(values.temperature);
  if (values.seed) options.seed = Number(values.seed);

  const terminal = Deno.stderr.isTerminal();
  const utf8 = new TextEncoder();
  const status = (text: string) =>
    terminal && Deno.stderr.writeSync(utf8.encode(`\r\x1b[K${text}`));

  await using model = await loadModel(folder, {
    onProgress({ stage, loaded, total }) {
      status(`${stage} ${Math.round(100 * loaded / total)} %`);
    },
  });
  status("");
  const generation = model.generate(prompt, options);
  Deno.stdout.writeSync(utf8.encode(prompt));
  for await (const chunk of generation) {
    Deno.stdout.writeSync(utf8.encode(chunk.text));
  }
  const { usage, timings } = await generation.result();
  const rate = usage.completionTokens / (timings.decodeMs / 1000);
  console.log();
  if (terminal) {
    console.error(
      `${usage.completionTokens} tokens, ${rate.toFixed(0)} tokens a second`,
    );
  }
}

try {
  await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  Deno.exit(1);
}
