/** Models for tests of caches' sizes. */
import type { Model } from "../../mod.ts";
import { parseConfig } from "../../src/model/config.ts";
import { buildModel } from "../../src/model/load.ts";
import { generatedSource } from "../../src/weights/bind.ts";
import { familyConfig, type FamilyName } from "./family.ts";

/** A model of a family member's layers and latent, all else tiny. */
export async function slender(
  name: FamilyName,
  latent: Record<string, number> = {},
): Promise<Model> {
  const json = {
    ...familyConfig(name),
    ...latent,
    vocab_size: 64,
    hidden_size: 16,
    intermediate_size: 16,
    moe_intermediate_size: 8,
    num_attention_heads: 1,
    q_lora_rank: null,
    n_routed_experts: 16,
    bos_token_id: 0,
    eos_token_id: 1,
  };
  const config = parseConfig(json, "config.json");
  return await buildModel({
    config,
    source: () => generatedSource(config, 1, "bf16"),
    fingerprint: () => Promise.resolve(""),
    bytes: 0,
  }, {});
}
