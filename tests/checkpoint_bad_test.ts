import { assertRejects, assertStringIncludes } from "@std/assert";
import { CheckpointError } from "../src/errors.ts";
import { openCheckpoint } from "../src/weights/checkpoint.ts";
import {
  makeCheckpoint,
  type MakeCheckpointOptions,
} from "./support/checkpoint.ts";
import { reducedConfig } from "./support/family.ts";
import {
  changeJson,
  changeTensors,
  inFolder,
  zeros,
} from "./support/folder.ts";
import {
  readSafetensors,
  type TestTensor,
  writeSafetensors,
} from "./support/safetensors.ts";

const INDEX = "model.safetensors.index.json";

/** Few experts, for speed. */
const SMALL = { ...reducedConfig("v2"), n_routed_experts: 8, n_group: 4 };

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
