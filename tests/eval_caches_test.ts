/** What nano still knows with its cache in the smaller types, beside bf16. */
import { loadModel, type LoadOptions } from "../mod.ts";
import {
  assertKnows,
  type Knowledge,
  knowledge,
  NANO,
} from "./support/nano.ts";
import { openLibraries } from "./support/open_library.ts";
import { kernelSets } from "./support/ops.ts";

// Before the tests: a library opened within one counts as a leak of it.
openLibraries();
// One set everywhere: what differs is the cache alone, not what AMX or CUDA round besides.
const OPTIONS: LoadOptions = kernelSets.includes("avx2")
  ? { device: "cpu", kernels: "avx2" }
  : {};

/** Of the cache in bf16: made by the test that comes first. */
let exact: Knowledge | undefined;
for (
  const [type, percent, fewer] of [
    ["fp8", 0.5, 1],
    ["int8", 0.1, 0],
    ["int6", 0.5, 1],
  ] as const
) {
  Deno.test(`nano with a cache of ${type}: perplexity at most ${percent} % above bf16, at most ${fewer} answers fewer, all needles`, async () => {
    await using model = await loadModel(NANO, OPTIONS);
    exact ??= await knowledge(model, "bf16");
    await assertKnows(model, exact, { percent, fewer }, type);
  });
}
