/**
 * The perplexity of a text file: how surprised the model is by each token, given those before.
 *
 * The whole text becomes tokens once, without BOS. Consecutive windows of n tokens are scored, each
 * after one BOS of its own; what is left at the end and fills no window is not scored. The result
 * is exp of the mean negative log-probability over all tokens of all windows.
 *
 * Run: deno run --allow-read --allow-ffi=build examples/score.ts tests/fixtures/heldout.txt
 *
 * Usage: score.ts [--model FOLDER] [--window N] FILE
 */
import { parseArgs } from "node:util";
import { loadModel } from "../mod.ts";

/** Draws a bar on the terminal, and nothing where there is none. */
function showProgress(done: number, total: number) {
  if (!Deno.stderr.isTerminal()) return;
  const width = 40;
  const filled = Math.round(width * done / total);
  const bar = "█".repeat(filled) + "░".repeat(width - filled);
  const line = done < total ? `${bar} ${done} of ${total} windows` : "";
  Deno.stderr.writeSync(new TextEncoder().encode(`\r\x1b[K${line}`));
}

async function main() {
  const { values, positionals } = parseArgs({
    args: Deno.args,
    allowPositionals: true,
    options: {
      model: { type: "string" },
      window: { type: "string", default: "1023" },
    },
  });
  const [file, ...others] = positionals;
  if (file === undefined || others.length > 0) {
    throw new TypeError("Usage: score.ts [--model FOLDER] [--window N] FILE");
  }
  const folder = values.model ?? new URL("../models/nano", import.meta.url);
  const window = Number(values.window);

  const text = await Deno.readTextFile(file);
  await using model = await loadModel(folder);
  const { tokenizer, config } = model;
  const longest = config.max_position_embeddings - 1;
  if (!Number.isInteger(window) || window < 1 || window > longest) {
    throw new RangeError(
      `--window is "${values.window}", and must be an integer in [1, ${longest}]`,
    );
  }
  const bos = tokenizer.bosTokenId;
  if (bos === undefined) {
    throw new TypeError("The model's tokenizer has no BOS to begin a window");
  }
  const tokens = tokenizer.encode(text, { addSpecialTokens: false });
  const windows = Math.floor(tokens.length / window);
  if (windows === 0) {
    throw new RangeError(
      `${file} has ${tokens.length} tokens, and must fill a window of ${window}`,
    );
  }

  let sum = 0;
  for (let i = 0; i < windows; i++) {
    showProgress(i, windows);
    const scored = tokens.slice(i * window, (i + 1) * window);
    const logprobs = await model.score([bos, ...scored]);
    sum = logprobs.reduce((sum, logprob) => sum - logprob, sum);
  }
  showProgress(windows, windows);
  const mean = sum / (windows * window);
  console.log(`perplexity ${Math.exp(mean).toFixed(4)}`);
  console.log(
    `windows: ${windows} of ${window} tokens; ${mean.toFixed(4)} nats a token`,
  );
}

try {
  await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  Deno.exit(1);
}
