/**
 * With the kernel set sm90-persistent a step of one row runs its layers in one launch
 * (csrc/cuda/persistent.cu); steps of more rows run operation by operation. Both must give the same bits,
 * with every type. A step that cannot run so is an error: none of these can pass by another way.
 */
import { assertEquals, assertRejects } from "@std/assert";
import type { CacheType, LoadOptions, Model, WeightsType } from "../mod.ts";
import { parseConfig } from "../src/model/config.ts";
import { buildModel } from "../src/model/load.ts";
import { generatedSource } from "../src/weights/bind.ts";
import { type ConfigJson, shapeConfig } from "../bench/shapes.ts";
import { kernelSets } from "./support/ops.ts";

const here = kernelSets.includes("sm90");

/** V2-Lite's attention, and little of everything else. */
const SMALL: ConfigJson = {
  hidden_size: 256,
  num_hidden_layers: 3,
  num_attention_heads: 3,
  intermediate_size: 592,
  moe_intermediate_size: 144,
  n_routed_experts: 10,
  num_experts_per_tok: 3,
  vocab_size: 320,
  bos_token_id: 0,
  eos_token_id: 1,
};

async function open(
  shape: string,
  weights: WeightsType,
  changes: ConfigJson = {},
  kernels: LoadOptions["kernels"] = "sm90-persistent",
): Promise<Model> {
  const json = { ...shapeConfig(shape), ...SMALL, ...changes };
  const config = parseConfig(json, "config.json");
  return await buildModel({
    config,
    source: () => generatedSource(config, 1, "bf16"),
    fingerprint: () => Promise.resolve(JSON.stringify([json, weights])),
    bytes: 0,
  }, { device: "cuda", kernels, weights });
}

/** Tokens and log-probabilities of two requests, one after another or together. */
async function outcomes(
  model: Model,
  type: CacheType,
  length: number,
  together: boolean,
) {
  const prompt = (seed: number) =>
    Array.from({ length }, (_, i) => 2 + (i * 7 + seed * 31) % 300);
  const run = async (seed: number) => {
    using cache = model.createCache({ type });
    const { tokens, logprobs } = await model.generate(prompt(seed), {
      cache,
      maxTokens: 4,
      temperature: 1,
      seed,
      logprobs: 0,
      ignoreEos: true,
      reusePrefix: false,
    }).result();
    return { tokens, logprobs: logprobs!.map(({ logprob }) => logprob) };
  };
  if (together) return await Promise.all([run(1), run(2)]);
  return [await run(1), await run(2)];
}

const CASES: [string, WeightsType, CacheType, ConfigJson, number[]][] = [
  ["v2-lite", "bf16", "bf16", {}, [5, 70]],
  ["v2-lite", "fp8", "fp8", { num_attention_heads: 16 }, [5, 70]],
  ["v2-lite", "int8", "int8", {}, [5, 70]],
  ["moonlight", "int4", "int6", {}, [5, 70]],
  ["moonlight", "bf16", "bf16", {}, [5, 70]],
  // Several tiles of keys a part, and from 2,049 on so many splits that blocks share their merging.
  ["v2-lite", "bf16", "bf16", { num_hidden_layers: 2 }, [300, 2100]],
  ["v2-lite", "int8", "int8", { num_hidden_layers: 2 }, [300, 1100]],
];

for (const [shape, weights, cache, changes, lengths] of CASES) {
  Deno.test({
    name:
      `a step in one launch gives the bits of one in many (${shape}, ${weights}, cache ${cache}, after ${lengths}, sm90-persistent)`,
    ignore: !here,
    fn: async () => {
      await using model = await open(shape, weights, changes);
      for (const length of lengths) {
        const alone = await outcomes(model, cache, length, false);
        assertEquals(alone, await outcomes(model, cache, length, true));
      }
    },
  });
}

const REFUSED: [string, WeightsType, CacheType, ConfigJson, string][] = [
  ["f32 weights", "f32", "bf16", {}, "do not run this model"],
  ["20 heads", "bf16", "bf16", { num_attention_heads: 20 }, "do not run this"],
  ["rows of 2,112", "bf16", "bf16", { hidden_size: 2112 }, "do not run this"],
  ["an f32 cache", "bf16", "f32", {}, "do not read an f32 cache"],
];

for (const [what, weights, cache, changes, message] of REFUSED) {
  Deno.test({
    name:
      `sm90-persistent refuses ${what}, and the model goes on; the default runs it another way`,
    ignore: !here,
    fn: async () => {
      const json = {
        num_hidden_layers: 1,
        first_k_dense_replace: 1,
        ...changes,
      };
      await using model = await open("v2-lite", weights, json);
      await assertRejects(
        () => outcomes(model, cache, 2, false),
        Error,
        message,
      );
      // Steps of more rows do not need it.
      await model.forward([2, 3, 4]);
      await using other = await open("v2-lite", weights, json, "auto");
      assertEquals(other.inspect().device.info().kernels, "sm90-persistent");
      assertEquals(
        await outcomes(other, cache, 2, false),
        await outcomes(other, cache, 2, true),
      );
    },
  });
}
