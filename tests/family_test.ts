/**
 * Every shape of the family at reduced size, through loadModel() in f32, against the float64
 * reference: logits, the residual stream after each layer, and the experts chosen.
 */
import { assert, assertEquals } from "@std/assert";
import { loadModel, type Model } from "../mod.ts";
import { openLibraries } from "./support/open_library.ts";
import { buildModel } from "../src/model/load.ts";
import { checkpointSource } from "../src/weights/bind.ts";
import { openCheckpoint } from "../src/weights/checkpoint.ts";
import { ReferenceModel, type ReferenceOutput } from "./reference/model.ts";
import {
  makeCheckpoint,
  type MakeCheckpointOptions,
} from "./support/checkpoint.ts";
import { FAMILY_NAMES, reducedConfig } from "./support/family.ts";
import { inFolder } from "./support/folder.ts";
import { Random, relativeError } from "./support/numbers.ts";

// Before the tests: a library opened within one counts as a leak of it.
openLibraries();

const TOLERANCE = 1e-5;
/** Odd, and more than the 128 tokens from which a prompt takes the up-projected path. */
const TOKENS = 131;

type Config = Record<string, unknown>;

function prompt(config: Config, seed: number): number[] {
  const random = new Random(seed);
  const vocab = Number(config.vocab_size);
  return Array.from({ length: TOKENS }, () => random.integer(vocab));
}

/** Each row of `actual` against as many rows of the reference from its first. */
function assertRows(
  actual: Float32Array,
  reference: Float64Array,
  cols: number,
  what: string,
) {
  assert(actual.length > 0 && actual.length <= reference.length, what);
  for (let i = 0; i < actual.length; i += cols) {
    const error = relativeError(
      actual.subarray(i, i + cols),
      reference.subarray(i, i + cols),
    );
    assert(error <= TOLERANCE, `${what}: row ${i / cols} is off by ${error}`);
  }
}

/** Logits by the up-projected path, by the absorbed one in chunks, and token by token. */
async function checkLogits(
  model: Model,
  tokens: readonly number[],
  { logits }: ReferenceOutput,
) {
  const { vocab_size } = model.config;
  const whole = await model.forward(tokens, { logits: "all" });
  assertEquals(whole.length, logits.length);
  assertRows(whole, logits, vocab_size, "up-projected");
  const cache = model.createCache();
  let at = 0;
  for (const size of [70, 1, 1, 5, 54]) {
    const chunk = await model.forward(tokens.slice(at, at + size), {
      cache,
      logits: "all",
    });
    const rows = logits.subarray(at * vocab_size);
    assertRows(chunk, rows, vocab_size, `absorbed, from token ${at}`);
    at += size;
  }
  assertEquals(at, tokens.length);
}

/** The states between the layers and the routers' choices of one step, path by path. */
async function checkLayers(
  folder: string,
  tokens: readonly number[],
  reference: ReferenceOutput,
) {
  const checkpoint = await openCheckpoint(folder);
  await using model = await buildModel({
    config: checkpoint.config,
    checkpoint,
    source: (native) => checkpointSource(native, checkpoint),
    bytes: 1,
    fingerprint: () => Promise.resolve(""),
    keepAll: true,
  }, { weights: "f32" });
  const { native, programs, recorded } = model.inspect();
  const { hidden_size, num_experts_per_tok } = model.config;
  for (const length of [tokens.length, 100]) {
    const path = length >= 128 ? "up-projected" : "absorbed";
    await model.forward(tokens.slice(0, length));
    recorded.hidden.forEach((value, layer) =>
      assertRows(
        native.readValue(programs.mixed, value, length * hidden_size),
        reference.hiddenStates[layer],
        hidden_size,
        `${path}: state before layer ${layer}`,
      )
    );
    const moe = recorded.routers.flatMap((router, layer) =>
      router ? [{ ...router, layer }] : []
    );
    assertEquals(moe.map(({ layer }) => layer), [...reference.routing.keys()]);
    assert(moe.length > 0);
    for (const { experts, weights, layer } of moe) {
      const routing = reference.routing.get(layer);
      assert(routing);
      const count = length * num_experts_per_tok;
      assertEquals(
        [...native.readIds(programs.mixed, experts, count)],
        routing.experts.slice(0, count),
        `${path}: experts of layer ${layer}`,
      );
      assertRows(
        native.readValue(programs.mixed, weights, count),
        Float64Array.from(routing.weights),
        num_experts_per_tok,
        `${path}: weights of layer ${layer}`,
      );
    }
  }
}

async function check(
  config: Config,
  options: MakeCheckpointOptions = {},
  look: (model: Model, folder: string) => void | Promise<void> = () => {},
) {
  await inFolder(async (folder) => {
    await makeCheckpoint(folder, config, options);
    const reference = await ReferenceModel.load(folder);
    const tokens = prompt(config, options.seed ?? 1);
    const output = reference.forward(tokens);
    await using model = await loadModel(folder, { weights: "f32" });
    await checkLogits(model, tokens, output);
    await checkLayers(folder, tokens, output);
    await look(model, folder);
  });
}

for (const [i, name] of FAMILY_NAMES.entries()) {
  Deno.test(`forward() follows the reference on ${name}`, () =>
    check(reducedConfig(name), { seed: 40 + i, shards: 1 + i % 3 }));
}

for (const dtype of ["bf16", "f16", "fp8"] as const) {
  for (const name of ["v2-lite", "v3"] as const) {
    Deno.test(`forward() follows the reference on ${name} stored in ${dtype}`, () =>
      check(reducedConfig(name), { seed: 50, dtype, shards: 2 }));
  }
}

Deno.test("forward() reads the scales of several blocks of FP8", () =>
  check({
    ...reducedConfig("v3"),
    num_hidden_layers: 2,
    first_k_dense_replace: 1,
    hidden_size: 136,
    intermediate_size: 264,
    moe_intermediate_size: 130,
    q_lora_rank: 144,
    kv_lora_rank: 132,
    n_routed_experts: 16,
  }, { seed: 51, dtype: "fp8" }));

Deno.test("loadModel() skips the layer for multi-token prediction", () =>
  check(
    reducedConfig("v3"),
    { seed: 52, predictionLayer: true },
    async (model, folder) => {
      const { num_hidden_layers, num_nextn_predict_layers } = model.config;
      assertEquals(num_nextn_predict_layers, 1);
      const { tensors } = await openCheckpoint(folder);
      const extra = `model.layers.${num_hidden_layers}.eh_proj.weight`;
      assert(tensors.has(extra));
      assertEquals(
        model.inspect().recorded.hidden.length,
        num_hidden_layers + 1,
      );
    },
  ));

Deno.test("forward() follows the reference with GLM-4.7-Flash's head dimensions", () =>
  check({
    ...reducedConfig("glm-4.7-flash"),
    num_attention_heads: 2,
    qk_nope_head_dim: 192,
    qk_rope_head_dim: 64,
    v_head_dim: 256,
    kv_lora_rank: 512,
  }, { seed: 53 }));

Deno.test("forward() follows the reference with one head and odd sizes", () =>
  check({
    ...reducedConfig("v2"),
    vocab_size: 97,
    hidden_size: 37,
    num_attention_heads: 1,
    q_lora_rank: 7,
    kv_lora_rank: 11,
    qk_nope_head_dim: 5,
    qk_rope_head_dim: 6,
    v_head_dim: 3,
    intermediate_size: 29,
    moe_intermediate_size: 13,
    n_routed_experts: 9,
    n_group: 3,
    topk_group: 2,
    num_experts_per_tok: 5,
  }, { seed: 54 }));

Deno.test("forward() follows the reference with one expert, all experts, none shared", async () => {
  const lite = reducedConfig("v2-lite");
  const moonlight = reducedConfig("moonlight");
  await check({
    ...lite,
    n_routed_experts: 1,
    num_experts_per_tok: 1,
    n_shared_experts: null,
  }, { seed: 55 });
  await check({
    ...moonlight,
    n_routed_experts: 4,
    num_experts_per_tok: 4,
  }, { seed: 56 });
});

Deno.test("forward() follows the reference with a mixture in every second layer", () =>
  check({
    ...reducedConfig("v2"),
    moe_layer_freq: 2,
    num_hidden_layers: 5,
  }, { seed: 57 }));

Deno.test("forward() follows the reference with tied embeddings", () =>
  check({ ...reducedConfig("v2-lite"), tie_word_embeddings: true }, {
    seed: 58,
  }));
