import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { CheckpointError } from "../src/errors.ts";
import { isMoeLayer, parseConfig } from "../src/model/config.ts";
import { routerScaling } from "../src/model/router_config.ts";
import { parseGenerationConfig } from "../src/model/generation_config.ts";
import { ropeNumbers } from "../src/model/rope.ts";
import { expectedTensors } from "../src/weights/expect.ts";
import {
  FAMILY_NAMES,
  familyConfig,
  type FamilyName,
  reducedConfig,
} from "./support/family.ts";

/** `change` laid over a published config; undefined removes a field. */
function changed(name: FamilyName, change: Record<string, unknown>) {
  return JSON.parse(JSON.stringify({ ...familyConfig(name), ...change }));
}

function refuses(
  name: FamilyName,
  change: Record<string, unknown>,
  ...words: string[]
) {
  const error = assertThrows(
    () => parseConfig(changed(name, change), "dir/config.json"),
    CheckpointError,
  );
  for (const word of ["dir/config.json", ...words]) {
    assertStringIncludes(error.message, word);
  }
}

for (const name of FAMILY_NAMES) {
  Deno.test(`parseConfig() keeps every field of ${name}`, () => {
    for (const json of [familyConfig(name), reducedConfig(name)]) {
      const config = parseConfig(json, "config.json");
      const { quantization_config, ...rest } = json;
      for (const [key, value] of Object.entries(rest)) {
        if (value === undefined) continue;
        assertEquals((config as unknown as typeof json)[key], value, key);
      }
      assertEquals(
        config.quantization_config?.quant_method,
        (quantization_config as { quant_method?: string } | undefined)
          ?.quant_method,
      );
    }
  });
}

Deno.test("parseConfig() fills in what the releases leave out", () => {
  const glm = parseConfig(familyConfig("glm-4.7-flash"), "config.json");
  assertEquals(glm.scoring_func, "sigmoid");
  assertEquals(glm.moe_layer_freq, 1);
  const lite = parseConfig(
    changed("v2-lite", {
      topk_method: undefined,
      n_group: null,
      topk_group: null,
      norm_topk_prob: undefined,
      scoring_func: undefined,
      routed_scaling_factor: undefined,
      n_shared_experts: null,
      architectures: undefined,
      bos_token_id: null,
      eos_token_id: undefined,
    }),
    "config.json",
  );
  assertEquals(lite.topk_method, "greedy");
  assertEquals([lite.n_group, lite.topk_group], [1, 1]);
  assertEquals(lite.norm_topk_prob, false);
  assertEquals(lite.scoring_func, "softmax");
  assertEquals(lite.routed_scaling_factor, 1);
  assertEquals(lite.n_shared_experts, 0);
  assertEquals(lite.bos_token_id, null);
  assertEquals(lite.eos_token_id, null);
});

Deno.test("parseConfig() reads rope_parameters as newer files write them", () => {
  const { type, ...rest } = familyConfig("v2").rope_scaling as { type: string };
  const config = parseConfig(
    changed("v2", {
      rope_theta: undefined,
      rope_scaling: undefined,
      rope_parameters: { rope_type: type, rope_theta: 10000, ...rest },
    }),
    "config.json",
  );
  assertEquals(config, {
    ...parseConfig(familyConfig("v2"), "config.json"),
  });
  const plain = parseConfig(
    changed("moonlight", {
      rope_theta: undefined,
      rope_parameters: { rope_type: "default", rope_theta: 50000 },
    }),
    "config.json",
  );
  assertEquals([plain.rope_theta, plain.rope_scaling], [50000, null]);
});

Deno.test("parseConfig() refuses other architectures by name", () => {
  refuses("v2", { model_type: "llama" }, "model_type", "llama");
  refuses("v3", { model_type: "deepseek_v32" }, "deepseek_v32");
  refuses("v2", { model_type: undefined }, "model_type is missing");
  refuses("v2", { architectures: ["LlamaForCausalLM"] }, "LlamaForCausalLM");
  refuses("v2", { architectures: ["DeepseekV3ForCausalLM"] }, "deepseek_v2");
  refuses("v2", { architectures: "DeepseekV2ForCausalLM" }, "architectures");
  for (const json of [null, [], "x", 1, undefined]) {
    assertThrows(() => parseConfig(json, "f"), CheckpointError, "JSON object");
  }
});

Deno.test("parseConfig() refuses sizes of zero, beyond reason, or no integers", () => {
  const sizes = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "n_routed_experts",
    "num_experts_per_tok",
    "kv_lora_rank",
    "q_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "max_position_embeddings",
    "n_group",
    "topk_group",
  ];
  for (const name of sizes) {
    for (const bad of [0, -1, 1.5, 1e12, 2 ** 53, "8", true, [8], {}]) {
      refuses("v2", { [name]: bad }, name);
    }
  }
  refuses("v2", { num_attention_heads: 0 }, "num_attention_heads is 0");
  refuses("v2", { num_hidden_layers: 1001 }, "[1, 1000]");
  refuses("v2", { n_shared_experts: -1 }, "n_shared_experts");
  refuses("v2", { n_shared_experts: 4000 }, "n_shared_experts 4000");
  refuses("v2", { first_k_dense_replace: -1 }, "first_k_dense_replace");
  refuses("v2", { moe_layer_freq: 0 }, "moe_layer_freq");
  refuses("v2", { hidden_size: undefined }, "hidden_size is missing");
  refuses("v2", { q_lora_rank: undefined }, "q_lora_rank is missing", "null");
  refuses("v2", { qk_rope_head_dim: 63 }, "qk_rope_head_dim is 63", "even");
});

Deno.test("parseConfig() refuses numbers that are not finite or positive", () => {
  for (const bad of [0, -1, 1e309, NaN, "1", null]) {
    const json = { ...familyConfig("v3") };
    for (const name of ["rms_norm_eps", "rope_theta"]) {
      assertThrows(
        () => parseConfig({ ...json, [name]: bad }, "f"),
        CheckpointError,
        name,
      );
    }
    assertThrows(
      () => parseConfig({ ...json, routed_scaling_factor: bad }, "f"),
      CheckpointError,
      "routed_scaling_factor",
    );
  }
});

Deno.test("parseConfig() refuses routers that cannot choose", () => {
  refuses("v2", { n_group: 7 }, "n_group is 7", "160");
  refuses("v2-lite", { n_group: 3 }, "n_group is 3", "64");
  refuses("v2", { topk_group: 9 }, "topk_group is 9", "[1, 8]");
  refuses("v2-lite", { num_experts_per_tok: 65 }, "is 65", "[1, 64]");
  refuses(
    "v2",
    { num_experts_per_tok: 61 },
    "num_experts_per_tok is 61",
    "at most 60",
  );
  refuses(
    "v3",
    { n_group: 256, topk_group: 64 },
    "n_group is 256",
    "at most 128",
  );
  refuses("v2", { topk_method: "noaux_tc" }, "topk_method", "noaux_tc");
  refuses("v3", { topk_method: "greedy" }, "topk_method", "greedy");
  refuses("v2", { topk_method: undefined }, "topk_method is missing");
  refuses("v2", { scoring_func: "sigmoid" }, "scoring_func");
  refuses("v3", { scoring_func: "softmax" }, "scoring_func");
  refuses("v3", { norm_topk_prob: undefined }, "norm_topk_prob is missing");
  refuses("v2", { norm_topk_prob: 1 }, "norm_topk_prob is 1");
});

Deno.test("parseConfig() refuses variants that it does not compute", () => {
  refuses("v2", { hidden_act: "gelu" }, "hidden_act", "gelu", "silu");
  refuses("v2", { attention_bias: true }, "attention_bias is true");
  refuses("v3", { rope_interleave: false }, "rope_interleave");
  refuses("v3", { partial_rotary_factor: 0.5 }, "partial_rotary_factor");
  refuses("v2", { tie_word_embeddings: "no" }, "tie_word_embeddings");
  refuses("v3", { quantization_config: { quant_method: "awq" } }, "awq");
  refuses("v3", { quantization_config: 8 }, "quantization_config is 8");
  refuses(
    "v3",
    { quantization_config: { quant_method: "fp8", weight_block_size: [1, 1] } },
    "quantization_config.weight_block_size is [1, 1]",
  );
  refuses(
    "v3",
    { quantization_config: { quant_method: "fp8", fmt: "e5m2" } },
    "e5m2",
  );
  refuses("v2", { bos_token_id: 102400 }, "bos_token_id", "102400");
  refuses("v2", { eos_token_id: [1, -1] }, "eos_token_id is [1, -1]");
});

Deno.test("parseConfig() refuses a bad rope_scaling", () => {
  const scaling = familyConfig("v2").rope_scaling as Record<string, unknown>;
  const refusesScaling = (
    change: Record<string, unknown>,
    ...words: string[]
  ) => refuses("v2", { rope_scaling: { ...scaling, ...change } }, ...words);
  refusesScaling({ type: "linear" }, "rope_scaling.type", "linear", "yarn");
  refusesScaling({ type: undefined }, "rope_scaling.type is missing");
  refusesScaling({ factor: 0 }, "rope_scaling.factor is 0");
  refusesScaling({ factor: undefined }, "rope_scaling.factor is missing");
  refusesScaling({ beta_fast: 0.5 }, "rope_scaling.beta_fast");
  refusesScaling({ mscale: -1 }, "rope_scaling.mscale");
  refusesScaling(
    { original_max_position_embeddings: undefined },
    "original_max_position_embeddings is missing",
  );
  refusesScaling({ attention_factor: 2 }, "attention_factor");
  refusesScaling({ truncate: false }, "truncate");
  refuses("v2", { rope_scaling: 40 }, "rope_scaling is 40");
});

Deno.test("routerScaling() scales in V2 only what it does not normalize", () => {
  const of = (name: FamilyName, change = {}) =>
    routerScaling(parseConfig(changed(name, change), "config.json"));
  assertEquals(of("v2"), { normalize: false, scale: 16 });
  assertEquals(of("v2", { norm_topk_prob: true }), {
    normalize: true,
    scale: 1,
  });
  assertEquals(of("v2", { norm_topk_prob: true, num_experts_per_tok: 1 }), {
    normalize: false,
    scale: 16,
  });
  assertEquals(of("v3"), { normalize: true, scale: 2.5 });
  assertEquals(of("kimi-k2"), { normalize: true, scale: 2.827 });
});

Deno.test("isMoeLayer() follows first_k_dense_replace and moe_layer_freq", () => {
  const layers = (change: Record<string, unknown>) => {
    const config = parseConfig(changed("v2", change), "config.json");
    return [0, 1, 2, 3, 4, 5].filter((layer) => isMoeLayer(config, layer));
  };
  assertEquals(layers({}), [1, 2, 3, 4, 5]);
  assertEquals(layers({ moe_layer_freq: 2 }), [2, 4]);
  assertEquals(layers({ first_k_dense_replace: 0, moe_layer_freq: 3 }), [0, 3]);
});

Deno.test("expectedTensors() adds up to the published parameter counts", () => {
  const billions = (name: FamilyName) => {
    const config = parseConfig(familyConfig(name), "config.json");
    let count = 0;
    for (const { shape } of expectedTensors(config)) {
      count += shape.reduce((product, n) => product * n, 1);
    }
    return Math.round(count / 1e6) / 1e3;
  };
  assertEquals(billions("v2"), 235.741);
  assertEquals(billions("v2-lite"), 15.706);
  assertEquals(billions("v3"), 671.026);
});

Deno.test("ropeNumbers() has the published check values of YaRN", () => {
  const numbers = (name: FamilyName, change = {}) =>
    ropeNumbers(parseConfig(changed(name, change), "config.json"));
  const v2 = numbers("v2");
  const close = (actual: number, expected: number, digits: number) =>
    assertAlmostEquals(actual, expected, 0.5001 * 10 ** -digits);
  close(v2.inverseFrequencies[10], 0.0562341325, 10);
  close(v2.inverseFrequencies[11], 0.0390069266, 10);
  close(v2.inverseFrequencies[15], 0.0083345090, 10);
  close(v2.inverseFrequencies[16], 0.0055, 10);
  close(v2.inverseFrequencies[22], 1.778279e-4, 10);
  close(v2.inverseFrequencies[23], 3.333804e-5, 11);
  close(v2.inverseFrequencies[31], 3.333804e-6, 12);
  assertEquals(v2.inverseFrequencies.length, 32);
  close(v2.softmaxScale, 0.11472139, 8);
  assertEquals(v2.cosSinMultiplier, 1);
  close(numbers("v2.5").softmaxScale, 0.13523378, 8);
  close(numbers("moonlight").softmaxScale, 0.07216878, 8);
  assertEquals(numbers("moonlight").inverseFrequencies[0], 1);

  // mscale alone acts on cos and sin, and leaves the softmax scale.
  const scaling = familyConfig("v2").rope_scaling as Record<string, unknown>;
  const alone = numbers("v2", {
    rope_scaling: { ...scaling, mscale_all_dim: 0 },
  });
  close(alone.cosSinMultiplier, 1.26080378, 8);
  close(alone.softmaxScale, 0.07216878, 8);
});

Deno.test("ropeNumbers() stays finite where YaRN's ramp has no width", () => {
  const scaling = familyConfig("kimi-k2").rope_scaling as Record<
    string,
    unknown
  >;
  const config = parseConfig(
    changed("kimi-k2", {
      rope_scaling: { ...scaling, original_max_position_embeddings: 1 },
    }),
    "config.json",
  );
  const { inverseFrequencies } = ropeNumbers(config);
  assert(inverseFrequencies.every((f) => Number.isFinite(f) && f > 0));
});

Deno.test("parseGenerationConfig() reads defaults and refuses bad ones", () => {
  const parse = (json: unknown) => parseGenerationConfig(json, "g.json", 100);
  const config = parse({
    do_sample: true,
    temperature: 0.3,
    top_k: 50,
    top_p: 0.95,
    min_p: null,
    eos_token_id: [1, 99],
    transformers_version: "4.33.1",
  });
  assertEquals(config.do_sample, true);
  assertEquals(config.temperature, 0.3);
  assertEquals(config.top_k, 50);
  assertEquals(config.top_p, 0.95);
  assertEquals(config.min_p, undefined);
  assertEquals(config.eos_token_id, [1, 99]);
  assertEquals(parse({}).eos_token_id, []);
  assertEquals(parse({ eos_token_id: 1 }).eos_token_id, [1]);
  for (
    const [name, bad] of Object.entries({
      do_sample: 1,
      temperature: -1,
      top_k: 0.5,
      top_p: 0,
      min_p: 2,
      typical_p: 0,
      repetition_penalty: 0,
      eos_token_id: 100,
    })
  ) {
    assertThrows(() => parse({ [name]: bad }), CheckpointError, name);
  }
});
