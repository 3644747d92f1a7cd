/**
 * Fifty prompts at once: calls of generate() share steps, nothing has to be batched by hand.
 *
 * Run: deno run --allow-read --allow-ffi=build examples/batch.ts
 *
 * Usage: batch.ts [--count N] [--tokens N]
 */
import { parseArgs } from "node:util";
import { loadModel } from "../mod.ts";

async function main() {
  const { values } = parseArgs({
    args: Deno.args,
    options: {
      count: { type: "string", default: "50" },
      tokens: { type: "string", default: "40" },
    },
  });
  const count = Number(values.count);
  const names = ["Rose", "Tom", "the king", "a fox", "the miller", "Jack"];
  const places = ["forest", "castle", "kitchen", "river", "village"];

  await using model = await loadModel(
    new URL("../models/nano", import.meta.url),
  );

  const utf8 = new TextEncoder();
  const terminal = Deno.stderr.isTerminal();
  let done = 0;
  function progress() {
    if (!terminal) return;
    const filled = Math.round(30 * done / count);
    const bar = "█".repeat(filled).padEnd(30, "░");
    const { running, waiting } = model.load;
    Deno.stderr.writeSync(utf8.encode(
      `\r\x1b[K${bar} ${done}/${count}, ${running} running, ${waiting} waiting`,
    ));
  }

  const start = performance.now();
  const results = await Promise.all(
    Array.from({ length: count }, async (_, i) => {
      const prompt =
        `Once upon a time ${names[i % names.length]} went to the ` +
        places[i % places.length];
      const { text, usage } = await model.generate(prompt, {
        maxTokens: Number(values.tokens),
        seed: i,
      }).result();
      done++;
      progress();
      return { prompt, text, tokens: usage.completionTokens };
    }),
  );
  const seconds = (performance.now() - start) / 1000;
  if (terminal) console.error();

  for (const { prompt, text } of results.slice(0, 3)) {
    console.log(`${prompt}${text}\n`);
  }
  const tokens = results.reduce((sum, result) => sum + result.tokens, 0);
  console.log(
    `${count} answers, ${tokens} tokens in ${seconds.toFixed(2)} s: ` +
      `${(tokens / seconds).toFixed(0)} tokens a second`,
  );
}

try {
  await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  Deno.exit(1);
}
