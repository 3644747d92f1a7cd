/** Converted checkpoints: loading maps them, and they give the bits of converting at load. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { CheckpointError, loadModel } from "../mod.ts";
import { openCheckpoint } from "../src/weights/checkpoint.ts";
import { quantizeCheckpoint } from "../src/weights/quantize.ts";
import { makeCheckpoint } from "./support/checkpoint.ts";
import { reducedConfig } from "./support/family.ts";
import { changeJson, inFolder } from "./support/folder.ts";
import { openLibraries } from "./support/open_library.ts";
import { assertSameBits, type Floats } from "./support/ops.ts";

openLibraries();

const NANO = new URL("../models/nano/", import.meta.url).pathname;
const TOKENS = [0, 17, 4, 900, 33, 33, 2, 1201, 64];

async function logits(
  folder: string,
  weights?: "fp8" | "int8" | "int4",
): Promise<Floats> {
  await using model = await loadModel(folder, { weights, device: "cpu" });
  const { vocab_size } = model.config;
  const tokens = TOKENS.map((token) => token % vocab_size);
  return new Float32Array(await model.forward(tokens, { logits: "all" }));
}

for (const weights of ["fp8", "int8", "int4"] as const) {
  Deno.test(`quantizeCheckpoint() of nano to ${weights} gives the bits of converting at load`, () =>
    inFolder(async (folder) => {
      const to = `${folder}/${weights}`;
      await quantizeCheckpoint(await openCheckpoint(NANO), to, { weights });
      assertSameBits(await logits(to), await logits(NANO, weights), weights);
      await using model = await loadModel(to, { device: "cpu" });
      const memory = model.inspect().native.memory();
      // The rotary frequencies, f64, are computed, and the routers widened to f32.
      const { qk_rope_head_dim, hidden_size, n_routed_experts } = model.config;
      const routers = model.config.num_hidden_layers -
        model.config.first_k_dense_replace;
      assertEquals(
        Number(memory.weightsPrivate),
        8 * qk_rope_head_dim / 2 + 4 * routers * n_routed_experts * hidden_size,
      );
      assert(memory.weightsMapped > 0);
      // Text works: the tokenizer has come along.
      const text = await model.generate([{
        role: "user",
        content: "What is 12 + 30?",
      }], { temperature: 0 }).text();
      assertEquals(text.trim(), "42");
    }));
}

Deno.test("quantizeCheckpoint() converts what is stored in f32, f16 and fp8", () =>
  inFolder(async (folder) => {
    const config = reducedConfig("v3");
    for (const dtype of ["f32", "f16", "fp8"] as const) {
      const from = `${folder}/${dtype}`;
      await makeCheckpoint(from, config, { dtype, predictionLayer: true });
      for (const weights of ["int4", "fp8"] as const) {
        const to = `${folder}/${dtype}-${weights}`;
        await quantizeCheckpoint(await openCheckpoint(from), to, { weights });
        const what = `${dtype} to ${weights}`;
        assertSameBits(await logits(to), await logits(from, weights), what);
      }
    }
  }));

Deno.test("quantizeCheckpoint() refuses a folder that holds something", () =>
  inFolder(async (folder) => {
    await Deno.writeTextFile(`${folder}/notes.txt`, "");
    const checkpoint = await openCheckpoint(NANO);
    await assertRejects(
      () => quantizeCheckpoint(checkpoint, folder, { weights: "int8" }),
      Error,
      'holds "notes.txt", and must be new or empty',
    );
  }));

Deno.test("openCheckpoint() names what is wrong with an int4 checkpoint", () =>
  inFolder(async (folder) => {
    const to = `${folder}/int4`;
    await quantizeCheckpoint(await openCheckpoint(NANO), to, {
      weights: "int4",
    });
    await changeJson(`${to}/config.json`, (json) => {
      json.quantization_config = { quant_method: "moela", weights: "int5" };
    });
    await assertRejects(
      () => loadModel(to),
      CheckpointError,
      "quantization_config.weights",
    );
  }));
