/**
 * What a token of the cache takes, scales included, beside the keys and values of DeepSeek 67B
 * (95 layers, 8 heads of 128, bf16), and how much less that is: the paper's 93.3 % for DeepSeek-V2.
 *
 * Run: deno run examples/cache_sizes.ts
 *
 * Usage: cache_sizes.ts
 */
import { CACHE_TYPES, entryBytes } from "../src/cache/type.ts";

const DEEPSEEK_67B = 95 * 8 * 2 * 128 * 2;
const MODELS = [
  { name: "DeepSeek-V2", layers: 60, kv_lora_rank: 512, qk_rope_head_dim: 64 },
  {
    name: "DeepSeek-V2-Lite",
    layers: 27,
    kv_lora_rank: 512,
    qk_rope_head_dim: 64,
  },
];

function line(model: string, type: string, bytes: number) {
  const less = 100 * (1 - bytes / DEEPSEEK_67B);
  console.log(
    model.padEnd(18) + type.padEnd(6) +
      bytes.toLocaleString("en").padStart(15) +
      `${less.toFixed(1)} %`.padStart(9),
  );
}

console.log("model".padEnd(18) + "type".padEnd(6) + "bytes a token     less");
line("DeepSeek 67B", "bf16", DEEPSEEK_67B);
for (const { name, layers, kv_lora_rank, qk_rope_head_dim } of MODELS) {
  for (const type of CACHE_TYPES) {
    if (type === "f32") continue;
    line(
      name,
      type,
      layers * entryBytes(type, kv_lora_rank + qk_rope_head_dim),
    );
  }
}
