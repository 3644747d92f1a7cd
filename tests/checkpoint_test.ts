import { assert, assertEquals, assertRejects } from "@std/assert";
import { pathToFileURL } from "node:url";
import { CheckpointError } from "../src/errors.ts";
import { openCheckpoint } from "../src/weights/checkpoint.ts";
import { ReferenceModel } from "./reference/model.ts";
import { readWeights } from "./reference/weights.ts";
import { makeCheckpoint } from "./support/checkpoint.ts";
import { FAMILY_NAMES, reducedConfig } from "./support/family.ts";
import {
  changeJson,
  changeTensors,
  inFolder,
  zeros,
} from "./support/folder.ts";
import { relativeError } from "./support/numbers.ts";

const ROOT = new URL("..", import.meta.url).pathname;

Deno.test("openCheckpoint() opens the embedded model by path and URL", async () => {
  const checkpoint = await openCheckpoint(`${ROOT}models/nano`);
  assertEquals(checkpoint.config.kv_lora_rank, 64);
  assertEquals(checkpoint.generationConfig?.top_p, 0.95);
  assertEquals(checkpoint.files.length, 2);
  let parameters = 0;
  for (const { shape, file, path, begin, end } of checkpoint.tensors.values()) {
    const count = shape.reduce((product, n) => product * n, 1);
    parameters += count;
    assertEquals(end - begin, 2 * count);
    assertEquals(checkpoint.files[file].path, path);
    assert(end <= checkpoint.files[file].bytes);
  }
  assertEquals(parameters, 10_428_608);
  const url = pathToFileURL(`${ROOT}models/nano/`);
  assertEquals(await openCheckpoint(url), checkpoint);
});

for (const name of FAMILY_NAMES) {
  Deno.test(`openCheckpoint() opens ${name} at a reduced size`, () =>
    inFolder(async (folder) => {
      await makeCheckpoint(folder, reducedConfig(name), { dtype: "bf16" });
      const { config, tensors } = await openCheckpoint(folder);
      assertEquals(tensors.get("lm_head.weight")?.dtype, "BF16");
      const model = await ReferenceModel.load(folder);
      const { logits, routing } = model.forward([5, 0, 199, 7, 7, 42]);
      assertEquals(logits.length, 6 * config.vocab_size);
      assert(logits.every(Number.isFinite));
      assertEquals(routing.size, 2);
    }));
}

Deno.test("openCheckpoint() reads shards, F16, FP8 and prediction layers", () =>
  inFolder(async (folder) => {
    await makeCheckpoint(folder, reducedConfig("v3"), { shards: 3 });
    assertEquals((await openCheckpoint(folder)).files.length, 3);
    await Deno.remove(`${folder}/model.safetensors.index.json`);
    await assertRejects(
      () => openCheckpoint(folder),
      CheckpointError,
      "3 *.safetensors",
    );

    for (const dtype of ["f16", "fp8"] as const) {
      const inner = `${folder}/${dtype}`;
      await makeCheckpoint(inner, reducedConfig("v3"), {
        dtype,
        predictionLayer: true,
      });
      const { tensors, config } = await openCheckpoint(inner);
      const mlp = `model.layers.0.mlp.up_proj.weight`;
      assertEquals(
        tensors.get(mlp)?.dtype,
        dtype === "fp8" ? "F8_E4M3" : "F16",
      );
      assert(
        tensors.has(`model.layers.${config.num_hidden_layers}.enorm.weight`),
      );
      // Without the count in config.json too.
      await changeJson(`${inner}/config.json`, (json) => {
        delete json.num_nextn_predict_layers;
      });
      await openCheckpoint(inner);
    }
  }));

Deno.test("makeCheckpoint() in FP8 has one scale for each 128 × 128 block", () =>
  inFolder(async (folder) => {
    const config = {
      ...reducedConfig("v3"),
      hidden_size: 136,
      intermediate_size: 260,
      num_hidden_layers: 4,
    };
    await makeCheckpoint(`${folder}/exact`, config);
    await makeCheckpoint(`${folder}/fp8`, config, { dtype: "fp8" });
    const { tensors } = await openCheckpoint(`${folder}/fp8`);
    const name = "model.layers.0.mlp.down_proj.weight";
    assertEquals(tensors.get(name)?.shape, [136, 260]);
    assertEquals(tensors.get(`${name}_scale_inv`)?.shape, [2, 3]);
    const exact = (await readWeights(`${folder}/exact`)).get(name)!;
    const fp8 = (await readWeights(`${folder}/fp8`)).get(name)!;
    const error = relativeError(fp8.data, exact.data);
    // Three bits of mantissa: at most 2^-4 each, about 2^-5.3 together.
    assert(error > 0.01 && error < 0.04, `${error}`);
  }));

Deno.test("openCheckpoint() wants no lm_head of tied embeddings", () =>
  inFolder(async (folder) => {
    const config = { ...reducedConfig("v2-lite"), tie_word_embeddings: true };
    await makeCheckpoint(folder, config);
    const { tensors } = await openCheckpoint(folder);
    assert(!tensors.has("lm_head.weight"));
    await changeJson(`${folder}/config.json`, (json) => {
      json.tie_word_embeddings = false;
    });
    await assertRejects(
      () => openCheckpoint(folder),
      CheckpointError,
      '"lm_head.weight" of shape [200, 56] is missing',
    );
  }));

Deno.test("openCheckpoint() takes one file of any name, and ignores inv_freq", () =>
  inFolder(async (folder) => {
    await makeCheckpoint(folder, reducedConfig("v2-lite"));
    await changeTensors(folder, (tensors) => {
      const name = "model.layers.0.self_attn.rotary_emb.inv_freq";
      tensors.set(name, zeros([6]));
    });
    await Deno.remove(`${folder}/generation_config.json`);
    await Deno.rename(`${folder}/model.safetensors`, `${folder}/x.safetensors`);
    const checkpoint = await openCheckpoint(folder);
    assertEquals(checkpoint.generationConfig, undefined);
    assertEquals(checkpoint.files[0].path, `${folder}/x.safetensors`);
  }));
