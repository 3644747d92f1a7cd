/**
 * Writes a checkpoint in another weight type. It then loads by mapping, without the time and the
 * memory that converting takes (the router alone is widened to f32, a thousandth of the weights), and
 * gives the same bits as converting at each load.
 *
 * Run: deno run --allow-read --allow-write --allow-ffi=build examples/quantize.ts \
 *   --weights int4 models/nano /tmp/nano-int4
 *
 * Usage: quantize.ts [--weights int4|int8|fp8] FROM TO
 */
import { parseArgs } from "node:util";
import { openCheckpoint } from "../src/weights/checkpoint.ts";
import { quantizeCheckpoint } from "../src/weights/quantize.ts";

const TYPES = ["int4", "int8", "fp8"] as const;

/** Draws a bar on the terminal, and nothing where there is none. */
function showProgress(written: number, total: number) {
  if (!Deno.stderr.isTerminal()) return;
  const gb = (bytes: number) => (bytes / 1e9).toFixed(2);
  const line = written < total ? `${gb(written)} of ${gb(total)} GB` : "";
  Deno.stderr.writeSync(new TextEncoder().encode(`\r\x1b[K${line}`));
}

async function main() {
  const { values, positionals } = parseArgs({
    args: Deno.args,
    allowPositionals: true,
    options: { weights: { type: "string", default: "int4" } },
  });
  const [from, to, ...others] = positionals;
  if (to === undefined || others.length > 0) {
    throw new TypeError(
      "Usage: quantize.ts [--weights int4|int8|fp8] FROM TO",
    );
  }
  const weights = TYPES.find((type) => type === values.weights);
  if (weights === undefined) {
    throw new RangeError(
      `--weights is "${values.weights}", and must be one of ${
        TYPES.join(", ")
      }`,
    );
  }
  const checkpoint = await openCheckpoint(from);
  const bytes = await quantizeCheckpoint(checkpoint, to, {
    weights,
    onProgress: showProgress,
  });
  const before = checkpoint.files.reduce((sum, file) => sum + file.bytes, 0);
  const mb = (count: number) => `${(count / 1e6).toFixed(1)} MB`;
  console.log(`${to}: ${weights}, ${mb(bytes)} instead of ${mb(before)}`);
}

try {
  await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  Deno.exit(1);
}
