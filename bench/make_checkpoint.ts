/**
 * Writes a checkpoint of the shape of a published model with seeded random weights.
 *
 * Run: deno run -A bench/make_checkpoint.ts OUT --shape v2-lite --layers 6 --seed 1 --dtype bf16
 */
import { parseArgs } from "node:util";
import { SHAPE_NAMES, shapeConfig } from "./shapes.ts";
import { writeCheckpoint } from "./write_checkpoint.ts";

const USAGE = `Usage: make_checkpoint.ts OUT [options]
  --shape NAME   ${SHAPE_NAMES.join(", ")} (v2-lite)
  --layers N     instead of the shape's own number
  --seed N       of the weights (1)
  --dtype TYPE   bf16 or f32 (bf16)`;

/** A line of its own on a terminal, rewritten; nothing elsewhere. */
function showProgress(written: number, total: number) {
  if (!Deno.stderr.isTerminal()) return;
  const text = `${(written / 1e9).toFixed(2)} of ${
    (total / 1e9).toFixed(2)
  } GB`;
  const end = written === total ? "\n" : "";
  Deno.stderr.writeSync(new TextEncoder().encode(`\r${text}${end}`));
}

async function main() {
  const { values, positionals } = parseArgs({
    args: Deno.args,
    allowPositionals: true,
    options: {
      shape: { type: "string", default: "v2-lite" },
      layers: { type: "string" },
      seed: { type: "string", default: "1" },
      dtype: { type: "string", default: "bf16" },
      help: { type: "boolean" },
    },
  });
  if (values.help) return console.log(USAGE);
  if (positionals.length !== 1) throw new TypeError(USAGE);
  const seed = Number(values.seed);
  if (!Number.isSafeInteger(seed) || seed < 0) {
    throw new RangeError(
      `--seed is "${values.seed}", and must be an integer in [0, 2^53)`,
    );
  }
  const { dtype } = values;
  if (dtype !== "bf16" && dtype !== "f32") {
    throw new RangeError(`--dtype is "${dtype}", and must be bf16 or f32`);
  }
  const layers = values.layers === undefined
    ? undefined
    : Number(values.layers);
  const [folder] = positionals;
  const started = performance.now();
  const { bytes, shards } = await writeCheckpoint(
    folder,
    shapeConfig(values.shape, layers),
    { seed, dtype, onProgress: showProgress },
  );
  const seconds = (performance.now() - started) / 1000;
  console.log(
    `${folder}: ${(bytes / 1e9).toFixed(2)} GB in ${shards} shards, ${
      seconds.toFixed(0)
    } s`,
  );
}

try {
  await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  Deno.exit(1);
}
