import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { pathToFileURL } from "node:url";
import { CheckpointError } from "../src/errors.ts";
import { openCheckpoint } from "../src/weights/checkpoint.ts";
import { ReferenceModel } from "./reference/model.ts";
import { readWeights } from "./reference/weights.ts";
import {
  makeCheckpoint,
  type MakeCheckpointOptions,
} from "./support/checkpoint.ts";
import { FAMILY_NAMES, reducedConfig } from "./support/family.ts";
import { relativeError } from "./support/numbers.ts";
import {
  readSafetensors,
  type TestTensor,
  writeSafetensors,
} from "./support/safetensors.ts";

const ROOT = new URL("..", import.meta.url).pathname;
const INDEX = "model.safetensors.index.json";

/** Few experts, for speed. */
const SMALL = { ...reducedConfig("v2"), n_routed_experts: 8, n_group: 4 };

async function inFolder(test: (folder: string) => Promise<void>) {
  const folder = await Deno.makeTempDir();
  try {
    await test(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** Expects a `CheckpointError` whose message has all the words. */
async function refuses(folder: string, ...words: string[]) {
  const error = await assertRejects(
    () => openCheckpoint(folder),
    CheckpointError,
  );
  for (const word of [folder, ...words]) {
    assertStringIncludes(error.message, word);
  }
}

/** A fresh reduced checkpoint, changed, must be refused. */
function refusesChanged(
  options: MakeCheckpointOptions,
  change: (folder: string) => Promise<void>,
  ...words: string[]
) {
  return inFolder(async (folder) => {
    await makeCheckpoint(folder, SMALL, options);
    await openCheckpoint(folder);
    await change(folder);
    await refuses(folder, ...words);
  });
}

/** Rewrites a folder's single file with other tensors. */
async function changeTensors(
  folder: string,
  change: (tensors: Map<string, TestTensor>) => void,
) {
  const path = `${folder}/model.safetensors`;
  const tensors = await readSafetensors(path);
  change(tensors);
  await writeSafetensors(path, tensors);
}

async function changeJson(
  path: string,
  change: (json: Record<string, unknown>) => void,
) {
  const json = JSON.parse(await Deno.readTextFile(path));
  change(json);
  await Deno.writeTextFile(path, JSON.stringify(json));
}

function zeros(
  shape: number[],
  dtype: TestTensor["dtype"] = "F32",
): TestTensor {
  const count = shape.reduce((product, n) => product * n, 1);
  return { dtype, shape, data: new Float32Array(count) };
}

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
    await Deno.remove(`${folder}/${INDEX}`);
    await refuses(folder, "3 *.safetensors");

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
    await refuses(folder, "lm_head.weight", "[200, 56]", "missing");
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

Deno.test("openCheckpoint() refuses a missing tensor", () =>
  refusesChanged(
    {},
    (folder) =>
      changeTensors(folder, (tensors) => {
        tensors.delete("model.layers.1.mlp.experts.3.up_proj.weight");
      }),
    "model.layers.1.mlp.experts.3.up_proj.weight",
    "[24, 56]",
    "missing",
  ));

Deno.test("openCheckpoint() refuses an extra tensor", async () => {
  const name = "model.layers.0.self_attn.q_proj.bias";
  await refusesChanged(
    {},
    (folder) =>
      changeTensors(folder, (tensors) => tensors.set(name, zeros([96]))),
    "model.safetensors",
    name,
    "no place",
  );
  // A scale whose weight is not FP8 is one too.
  const scale = "model.layers.0.self_attn.o_proj.weight_scale_inv";
  await refusesChanged(
    {},
    (folder) =>
      changeTensors(folder, (tensors) => tensors.set(scale, zeros([1, 1]))),
    scale,
  );
});

Deno.test("openCheckpoint() refuses a config that is cut short", () =>
  refusesChanged(
    {},
    (folder) =>
      changeJson(`${folder}/config.json`, (json) => {
        json.num_hidden_layers = 2;
      }),
    "model.layers.2.",
    "no place",
  ));

Deno.test("openCheckpoint() refuses a wrong shape or type", async () => {
  const name = "model.layers.0.self_attn.kv_b_proj.weight";
  const set = (key: string, tensor: TestTensor) => (folder: string) =>
    changeTensors(folder, (tensors) => tensors.set(key, tensor));
  await refusesChanged(
    {},
    set(name, zeros([24, 120])),
    name,
    "[24, 120]",
    "[120, 24]",
  );
  await refusesChanged({}, set(name, zeros([120 * 24])), name, "[2880]");
  const integers: TestTensor = {
    dtype: "I32",
    shape: [120, 24],
    data: new Int32Array(120 * 24),
  };
  await refusesChanged({}, set(name, integers), name, "I32", "F8_E4M3");
  await refusesChanged(
    {},
    set("model.norm.weight", zeros([56], "F8_E4M3")),
    "model.norm.weight",
    "F8_E4M3",
    "F32 or BF16 or F16",
  );
});

Deno.test("openCheckpoint() refuses FP8 without fitting scales", async () => {
  const name = "model.layers.0.self_attn.kv_b_proj.weight";
  const scale = `${name}_scale_inv`;
  const change =
    (edit: (tensors: Map<string, TestTensor>) => void) => (folder: string) =>
      changeTensors(folder, edit);
  await refusesChanged(
    { dtype: "fp8" },
    change((tensors) => tensors.delete(scale)),
    scale,
    "[1, 1]",
    "missing",
  );
  await refusesChanged(
    { dtype: "fp8" },
    change((tensors) => tensors.set(scale, zeros([1, 2]))),
    scale,
    "[1, 2]",
  );
  await refusesChanged(
    { dtype: "fp8" },
    change((tensors) => tensors.set(scale, zeros([1, 1], "BF16"))),
    scale,
    "BF16",
    "F32",
  );
});

Deno.test("openCheckpoint() refuses missing shards and files", async () => {
  const second = "model-00002-of-00002.safetensors";
  await refusesChanged(
    { shards: 2 },
    (folder) => Deno.remove(`${folder}/${second}`),
    second,
    "missing",
    INDEX,
  );
  await refusesChanged(
    {},
    (folder) => Deno.remove(`${folder}/model.safetensors`),
    "0 *.safetensors",
  );
  await inFolder(async (folder) => {
    const absent = `${folder}/absent`;
    await assertRejects(() => openCheckpoint(absent), Deno.errors.NotFound);
    await assertRejects(() => openCheckpoint(folder), Deno.errors.NotFound);
    const file = `${folder}/model.gguf`;
    await Deno.writeTextFile(file, "GGUF");
    await refuses(file, "not a folder");
  });
});

Deno.test("openCheckpoint() refuses an index that disagrees with its shards", async () => {
  const first = "model-00001-of-00002.safetensors";
  const second = "model-00002-of-00002.safetensors";
  const mapTo = (tensor: string, shard: unknown) => (folder: string) =>
    changeJson(`${folder}/${INDEX}`, (json) => {
      (json.weight_map as Record<string, unknown>)[tensor] = shard;
    });
  await refusesChanged(
    { shards: 2 },
    mapTo("lm_head.weight", first),
    first,
    "lm_head.weight",
    "missing",
  );
  for (
    const hostile of [
      "../model.safetensors",
      "/etc/passwd",
      "/etc/x.safetensors",
      "a\\b.safetensors",
      "a/b.safetensors",
      "..",
      ".hidden.safetensors",
      "x\0.safetensors",
      "config.json",
      "",
      7,
      null,
    ]
  ) {
    await refusesChanged(
      { shards: 2 },
      mapTo("lm_head.weight", hostile),
      INDEX,
      "lm_head.weight",
      "same folder",
    );
  }
  await refusesChanged(
    { shards: 2 },
    async (folder) => {
      const tensors = await readSafetensors(`${folder}/${first}`);
      tensors.set("lm_head.weight", zeros([200, 56]));
      await writeSafetensors(`${folder}/${first}`, tensors);
    },
    "lm_head.weight",
    first,
    second,
    "one file only",
  );
});

Deno.test("openCheckpoint() refuses JSON that is none", async () => {
  for (
    const file of ["config.json", "generation_config.json", INDEX] as const
  ) {
    for (const content of ["", "{", "\xff", "[1]", "null", "3"]) {
      await refusesChanged(
        { shards: 2 },
        (folder) => Deno.writeTextFile(`${folder}/${file}`, content),
        file,
      );
    }
  }
  await refusesChanged(
    {},
    (folder) =>
      Deno.writeFile(`${folder}/config.json`, Uint8Array.of(0x22, 0xff, 0x22)),
    "UTF-8",
  );
  await refusesChanged(
    {},
    async (folder) => {
      await Deno.remove(`${folder}/config.json`);
      await Deno.mkdir(`${folder}/config.json`);
    },
    "config.json",
    "not a file",
  );
  await refusesChanged(
    { shards: 2 },
    (folder) => Deno.writeTextFile(`${folder}/${INDEX}`, '{"weight_map":{}}'),
    "empty",
  );
});

Deno.test("openCheckpoint() rejects paths of a wrong type", async () => {
  const open = openCheckpoint as (path: unknown) => Promise<unknown>;
  for (const path of [undefined, null, 7, {}]) {
    await assertRejects(() => open(path), TypeError, "path is");
  }
  const url = new URL("https://example.com/model");
  await assertRejects(() => open(url), TypeError, "file:");
});
