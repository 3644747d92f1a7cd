/**
 * Error of attention by cache type with V2's head dimensions (512 + 64), on the fixture `real-heads`:
 * latents and keys of 192 tokens from each of its layers, 9 random queries a head at the last
 * positions, ‖x − ref‖ / ‖ref‖ in f64 against unrounded entries.
 *
 * Usage: cache_error.ts
 */
import { Kernels, newControl } from "../ffi/mod.ts";
import { LATENT_NORM_EPS } from "../src/model/config.ts";
import { buildModel } from "../src/model/load.ts";
import { CACHE_TYPES, entryBytes } from "../src/cache/type.ts";
import { bindWeights, checkpointSource } from "../src/weights/bind.ts";
import { openCheckpoint } from "../src/weights/checkpoint.ts";
import { checkpointFolder } from "../tests/support/fixtures.ts";
import { Random, relativeError } from "../tests/support/numbers.ts";
import { latentAttention } from "../tests/support/mla.ts";
import { normals } from "../tests/support/ops.ts";

const TOKENS = 192;
const QUERIES = 9;

const checkpoint = await openCheckpoint(checkpointFolder("real-heads"));
const { config } = checkpoint;
const { hidden_size, kv_lora_rank: r, qk_rope_head_dim: dr } = config;
const width = r + dr, heads = config.num_attention_heads;

/** The residual stream before each layer. */
async function states() {
  await using model = await buildModel({
    config,
    checkpoint,
    fingerprint: () => Promise.resolve("bench"),
    source: (native) => checkpointSource(native, checkpoint),
    bytes: 1,
    keepAll: true,
  }, { weights: "f32", device: "cpu" });
  const random = new Random(1);
  await model.forward(
    Array.from({ length: TOKENS }, () => random.integer(config.vocab_size)),
  );
  const { native, programs, recorded } = model.inspect();
  return recorded.hidden.map((value) =>
    native.readValue(programs.mixed, value, TOKENS * hidden_size)
  );
}

const hidden = await states();
using kernels = new Kernels({ device: "cpu" });
const weights = await bindWeights(
  kernels.model,
  config,
  checkpointSource(kernels.model, checkpoint),
  { weights: "f32", control: newControl() },
);
const errors = new Map<string, string[]>();
for (const [layer, w] of weights.layers.entries()) {
  const x = await kernels.rms_norm(
    hidden[layer],
    w.inputNorm,
    config.rms_norm_eps,
  );
  const kvA = await kernels.linear(x, w.kvA);
  const written = async (dtype: typeof CACHE_TYPES[number]) => {
    const cache = kernels.cache(config, TOKENS, { dtype });
    await kernels.cache_write(
      kvA,
      w.kvANorm,
      weights.inverseFrequencies,
      { cache, position: 0, rows: TOKENS },
      LATENT_NORM_EPS,
    );
    return cache;
  };
  const exact = await written("f32");
  const entries = new Float32Array(TOKENS * width);
  for (const [i, page] of exact.pages.entries()) {
    const bytes = kernels.model.readPage(exact.pool, page);
    entries.set(new Float32Array(bytes.buffer), i * 64 * width);
  }
  // Scores of deviation 2, whatever the size of the entries.
  const size = Math.sqrt(entries.reduce((sum, x) => sum + x * x, 0) / TOKENS);
  const q = normals(QUERIES * heads * width, 2, 2 / size);
  const rows = { position: TOKENS - QUERIES, rows: QUERIES };
  const reference = latentAttention(config, q, [
    { cache: exact, entries, ...rows },
  ]);
  for (const dtype of CACHE_TYPES) {
    const cache = await written(dtype);
    const { outputs } = await kernels.run((p) => {
      const input = p.input(heads * width);
      return {
        inputs: [[input, q]],
        outputs: [p.mlaDecode(input, 0, config)],
      };
    }, { rows: QUERIES, sequences: [{ cache, ...rows }] });
    const error = relativeError(outputs[0], reference);
    errors.set(dtype, [...errors.get(dtype) ?? [], error.toPrecision(2)]);
  }
}
console.log("cache   error by layer      bytes a token and layer");
for (const [type, found] of errors) {
  const bytes = entryBytes(type as typeof CACHE_TYPES[number], width);
  console.log(
    `${type.padEnd(8)}${found.join("  ").padEnd(20)}${bytes}`,
  );
}
