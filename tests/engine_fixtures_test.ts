/**
 * The five fixture checkpoints, in f32, against their independent float64 implementation: logits,
 * hidden states after each layer, experts, greedy tokens; in one piece, token by token, in ragged
 * chunks, and beside other sequences.
 */
import { assert, assertEquals } from "@std/assert";
import { type Cache, loadModel, type Model } from "../mod.ts";
import { openCheckpoint } from "../src/weights/checkpoint.ts";
import { checkpointSource } from "../src/weights/bind.ts";
import { buildModel } from "../src/model/load.ts";
import { checkpointFolder, CHECKPOINTS } from "./support/fixtures.ts";
import { relativeError } from "./support/numbers.ts";
import { floats, integers, readSafetensors } from "./support/safetensors.ts";
import { kernelSets } from "./support/ops.ts";

const TOLERANCE = 1e-5;

async function expected(name: typeof CHECKPOINTS[number]) {
  const tensors = await readSafetensors(
    new URL("expected.safetensors", checkpointFolder(name)),
  );
  return {
    prompt: Array.from(integers(tensors, "prompt")),
    logits: floats(tensors, "logits"),
    hidden: floats(tensors, "hidden_states"),
    greedy: Array.from(integers(tensors, "greedy")),
    margin: floats(tensors, "greedy_margin"),
    tensors,
  };
}

/** Each of `rows` rows within the tolerance. */
function assertRows(
  actual: Float32Array,
  reference: Float32Array,
  cols: number,
  what: string,
) {
  assertEquals(actual.length, reference.length, what);
  for (let i = 0; i < actual.length; i += cols) {
    const error = relativeError(
      actual.subarray(i, i + cols),
      reference.subarray(i, i + cols),
    );
    assert(error <= TOLERANCE, `${what}: row ${i / cols} is off by ${error}`);
  }
}

/** Logits of all tokens, appended in chunks of these sizes (the last one repeats). */
async function logitsInChunks(
  model: Model,
  tokens: readonly number[],
  sizes: readonly number[],
  cache: Cache = model.createCache(),
): Promise<Float32Array> {
  const out = new Float32Array(tokens.length * model.config.vocab_size);
  let at = 0;
  for (let i = 0; at < tokens.length; i++) {
    const size = sizes[Math.min(i, sizes.length - 1)];
    const chunk = tokens.slice(at, at + size);
    const logits = await model.forward(chunk, { cache, logits: "all" });
    out.set(logits, at * model.config.vocab_size);
    at += chunk.length;
  }
  return out;
}

for (const name of CHECKPOINTS) {
  for (const kernels of kernelSets) {
    Deno.test(`forward() reproduces ${name} with ${kernels} kernels`, async () => {
      const { prompt, logits } = await expected(name);
      await using model = await loadModel(checkpointFolder(name), {
        weights: "f32",
        kernels,
      });
      const { vocab_size } = model.config;
      const whole = await logitsInChunks(model, prompt, [prompt.length]);
      assertRows(whole, logits, vocab_size, "in one piece");
      const one = await logitsInChunks(model, prompt, [1]);
      assertRows(one, logits, vocab_size, "token by token");
      const ragged = await logitsInChunks(model, prompt, [3, 17, 1, 30, 64, 5]);
      assertRows(ragged, logits, vocab_size, "in ragged chunks");
      const others = [[5, 6, 7], prompt.slice(0, 40), [1]].map((tokens) =>
        model.forward(tokens)
      );
      const [beside] = await Promise.all([
        model.forward(prompt, { logits: "all" }),
        ...others,
      ]);
      assertRows(beside, logits, vocab_size, "beside others");
    });
  }

  Deno.test(`forward() reproduces ${name} up-projected`, async () => {
    const { prompt, logits } = await expected(name);
    await using model = await loadModel(checkpointFolder(name), {
      weights: "f32",
    });
    const { vocab_size } = model.config;
    // From 128 tokens on a call takes the up-projected path; what follows a row cannot change it.
    const long = [...prompt, ...prompt, ...prompt, ...prompt];
    assert(long.length >= 128);
    const all = await model.forward(long, { logits: "all" });
    assertRows(all.subarray(0, logits.length), logits, vocab_size, "projected");
  });

  Deno.test(`the layers of ${name} give the reference's states and experts`, async () => {
    const { prompt, hidden, tensors } = await expected(name);
    const checkpoint = await openCheckpoint(checkpointFolder(name));
    const model = await buildModel({
      config: checkpoint.config,
      checkpoint,
      fingerprint: () => Promise.resolve("test"),
      source: (native) => checkpointSource(native, checkpoint),
      bytes: 1,
      keepAll: true,
    }, { weights: "f32" });
    await using _ = model;
    const { native, programs, recorded } = model.inspect();
    const { hidden_size, num_experts_per_tok } = model.config;
    // Values are kept for one step; logits of all rows would split the prompt into several.
    await model.forward(prompt);
    const count = prompt.length * hidden_size;
    assertEquals(recorded.hidden.length * count, hidden.length);
    recorded.hidden.forEach((value, layer) => {
      assertRows(
        native.readValue(programs.mixed, value, count),
        hidden.subarray(layer * count, (layer + 1) * count),
        hidden_size,
        `state before layer ${layer}`,
      );
    });
    const routed = recorded.routers.flatMap((router, layer) =>
      router ? [{ ...router, layer }] : []
    );
    assert(routed.length > 0);
    for (const { experts, weights, layer } of routed) {
      const n = prompt.length * num_experts_per_tok;
      assertEquals(
        Array.from(native.readIds(programs.mixed, experts, n)),
        Array.from(integers(tensors, `router.${layer}.experts`)),
        `experts of layer ${layer}`,
      );
      assertRows(
        native.readValue(programs.mixed, weights, n),
        floats(tensors, `router.${layer}.weights`),
        num_experts_per_tok,
        `weights of layer ${layer}`,
      );
    }
  });

  Deno.test(`greedy tokens of ${name} are the reference's`, async () => {
    const { prompt, greedy, margin } = await expected(name);
    await using model = await loadModel(checkpointFolder(name), {
      weights: "f32",
    });
    const cache = model.createCache();
    let logits = await model.forward(prompt, { cache });
    for (let i = 0; i < greedy.length; i++) {
      const best = logits.reduce(
        (best, value, id) => value > logits[best] ? id : best,
        0,
      );
      if (margin[i] > 1e-3) assertEquals(best, greedy[i], `token ${i}`);
      logits = await model.forward([greedy[i]], { cache });
    }
  });
}
