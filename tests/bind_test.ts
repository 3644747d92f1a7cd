/** Which tensor runs in which type. */
import { assertEquals } from "@std/assert";
import type { NativeModel, NativeWeight } from "../ffi/mod.ts";
import { shapeConfig } from "../bench/shapes.ts";
import { parseConfig } from "../src/model/config.ts";
import {
  bindWeights,
  generatedSource,
  type WeightsType,
} from "../src/weights/bind.ts";
import { tensorKey } from "../src/weights/generated.ts";

/** What `bindWeights()` asks of the library for one tensor: "stored dtype". */
async function asked(
  weights: WeightsType,
  stored: "f32" | "bf16",
): Promise<(name: string) => string> {
  const config = parseConfig(shapeConfig("v3", 4), "v3");
  const types = new Map<unknown, string>();
  const native = {
    addWeight(weight: NativeWeight) {
      for (const part of weight.parts) {
        types.set(part, `${weight.stored} ${weight.dtype}`);
      }
      return Promise.resolve(types.size);
    },
    addConstant: () => 0,
  };
  await bindWeights(
    native as unknown as NativeModel,
    config,
    generatedSource(config, 1, stored),
    { weights, control: new Int32Array(new SharedArrayBuffer(32)) },
  );
  return (name) => types.get(tensorKey(`model.${name}`)) ?? "nothing";
}

const TYPES = ["auto", "f32", "bf16", "fp8", "int8", "int4"] as const;

Deno.test("bindWeights() runs the router in f32, from what is stored", async () => {
  for (const weights of TYPES) {
    for (const stored of ["f32", "bf16"] as const) {
      const type = await asked(weights, stored);
      // With "f32" the numbers themselves are made without rounding to bf16.
      const from = weights === "f32" ? "f32" : stored;
      assertEquals(type("layers.3.mlp.gate.weight"), `${from} f32`);
      assertEquals(
        type("layers.3.mlp.gate.e_score_correction_bias"),
        "f32 f32",
      );
    }
  }
});

Deno.test("bindWeights() leaves norms and the embedding as they are stored", async () => {
  for (const weights of TYPES) {
    for (const stored of ["f32", "bf16"] as const) {
      const type = await asked(weights, stored);
      const kept = weights === "f32" ? "f32" : stored;
      for (
        const name of [
          "embed_tokens.weight",
          "norm.weight",
          "layers.0.input_layernorm.weight",
          "layers.3.self_attn.q_a_layernorm.weight",
          "layers.3.self_attn.kv_a_layernorm.weight",
          "layers.3.post_attention_layernorm.weight",
        ]
      ) {
        assertEquals(type(name), `${kept} ${kept}`, `${weights}: ${name}`);
      }
    }
  }
});

Deno.test("bindWeights() gives projections the type that is asked for, latents in int4 and fp8 another", async () => {
  for (
    const [weights, projection, latent] of [
      ["auto", "bf16", "bf16"],
      ["bf16", "bf16", "bf16"],
      ["fp8", "fp8", "bf16"],
      ["int8", "int8", "int8"],
      ["int4", "int4", "int8"],
    ] as const
  ) {
    const type = await asked(weights, "bf16");
    for (
      const name of [
        "layers.0.mlp.gate_proj.weight",
        "layers.3.self_attn.q_b_proj.weight",
        "layers.3.mlp.experts.7.down_proj.weight",
        "layers.3.mlp.shared_experts.up_proj.weight",
      ]
    ) {
      assertEquals(type(name), `bf16 ${projection}`, `${weights}: ${name}`);
    }
    for (const name of ["kv_a_proj_with_mqa", "kv_b_proj"]) {
      assertEquals(type(`layers.3.self_attn.${name}.weight`), `bf16 ${latent}`);
    }
  }
});
