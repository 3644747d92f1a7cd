/** What cuda_emulated_test.ts runs of a whole model: see there. */
import { assert, assertEquals } from "@std/assert";
import { loadModel } from "../../mod.ts";
import { checkpointFolder } from "../support/fixtures.ts";
import { relativeError } from "../support/numbers.ts";
import { cpuKernelSets, kernelSets } from "../support/ops.ts";
import { BF16_ROUNDING } from "../support/rounding.ts";
import { floats, integers, readSafetensors } from "../support/safetensors.ts";

const FOLDER = checkpointFolder("tiny-lite");
const TOLERANCE = 1e-5;
/** Products that a row passes through one after another, each of which rounds its input. */
const PRODUCTS = 7;

const tensors = await readSafetensors(new URL("expected.safetensors", FOLDER));
const prompt = Array.from(integers(tensors, "prompt"));

// In f32 the sets are the same, and take their time here.
Deno.test("tiny-lite gives the reference's logits and tokens (generic)", async () => {
  await using model = await loadModel(FOLDER, {
    weights: "f32",
    kernels: "generic",
  });
  const { vocab_size } = model.config;
  const logits = await model.forward(prompt.slice(0, 8), { logits: "all" });
  const expected = floats(tensors, "logits");
  for (let i = 0; i < logits.length; i += vocab_size) {
    const error = relativeError(
      logits.subarray(i, i + vocab_size),
      expected.subarray(i, i + vocab_size),
    );
    assert(error <= TOLERANCE, `row ${i / vocab_size} is off by ${error}`);
  }
  const options = { maxTokens: 3, temperature: 0, ignoreEos: true };
  const { tokens } = await model.generate(prompt, options).result();
  assertEquals(tokens, Array.from(integers(tensors, "greedy")).slice(0, 3));
});

for (
  const kernels of kernelSets.filter((set) => !cpuKernelSets.includes(set))
) {
  Deno.test(`tiny-lite up-projected is near the CPU's (${kernels})`, async () => {
    const long = [...prompt, ...prompt, ...prompt, ...prompt];
    assert(long.length >= 128);
    const of = async (kernels: typeof kernelSets[number]) => {
      await using model = await loadModel(FOLDER, { weights: "bf16", kernels });
      const layers = model.config.num_hidden_layers;
      const logits = await model.forward(long, { logits: "all" });
      return { logits, most: layers * PRODUCTS * BF16_ROUNDING };
    };
    const { logits: expected } = await of("reference");
    const { logits, most } = await of(kernels);
    const error = relativeError(logits, expected);
    assert(error <= most, `off by ${error}, and ${most} is allowed`);
  });

  for (const weights of ["bf16", "int8"] as const) {
    Deno.test(`generate() gives the same alone and in a batch (${kernels}, ${weights})`, async () => {
      await using model = await loadModel(FOLDER, { weights, kernels });
      const run = async (seed: number) => {
        const options = { maxTokens: 4, temperature: 1, seed, logprobs: 0 };
        const { tokens, logprobs } = await model.generate(
          prompt.slice(seed, 9 + seed),
          { ...options, ignoreEos: true },
        ).result();
        return [tokens, logprobs?.map(({ logprob }) => logprob)];
      };
      const together = await Promise.all([0, 1, 2].map(run));
      assertEquals(await run(1), together[1]);
    });
  }
}
