import { assert, assertEquals } from "@std/assert";
import { ReferenceModel } from "./reference/model.ts";
import { checkpointFolder, CHECKPOINTS } from "./support/fixtures.ts";
import { relativeError } from "./support/numbers.ts";
import { floats, integers, readSafetensors } from "./support/safetensors.ts";

/** The expectations are stored as f32. */
const TOLERANCE = 1e-6;

/** Causal: the first rows do not depend on the rest. */
const TOKENS = 64;

for (const name of CHECKPOINTS) {
  Deno.test(`ReferenceModel reproduces ${name}`, async () => {
    const folder = checkpointFolder(name).pathname;
    const expected = await readSafetensors(`${folder}/expected.safetensors`);
    const model = await ReferenceModel.load(folder);
    const { config } = model;
    const prompt = [...integers(expected, "prompt").slice(0, TOKENS)];
    const length = prompt.length;
    const output = model.forward(prompt);

    const checkRows = (
      what: string,
      actual: Float64Array,
      reference: Float32Array,
      width: number,
    ) => {
      for (let row = 0; row < length; row++) {
        const part = [row * width, (row + 1) * width] as const;
        const error = relativeError(
          actual.subarray(...part),
          reference.subarray(...part),
        );
        assert(error <= TOLERANCE, `${what}, row ${row}: ${error}`);
      }
    };
    const width = config.vocab_size;
    checkRows("logits", output.logits, floats(expected, "logits"), width);

    const size = config.hidden_size;
    const stored = floats(expected, "hidden_states");
    const [layers, rows] = expected.get("hidden_states")!.shape;
    assertEquals(output.hiddenStates.length, layers);
    output.hiddenStates.forEach((states, layer) => {
      const start = layer * rows * size;
      const reference = stored.subarray(start, start + length * size);
      checkRows(`hidden state ${layer}`, states, reference, size);
    });

    let routers = 0;
    for (const key of expected.keys()) {
      const layer = /^router\.(\d+)\.experts$/.exec(key)?.[1];
      if (layer === undefined) continue;
      routers++;
      const routing = output.routing.get(Number(layer))!;
      const count = length * config.num_experts_per_tok;
      const experts = integers(expected, key).slice(0, count);
      assertEquals(routing.experts, [...experts]);
      const weights = floats(expected, `router.${layer}.weights`);
      const error = relativeError(routing.weights, weights.slice(0, count));
      assert(error <= TOLERANCE, `weights of layer ${layer}: ${error}`);
    }
    assertEquals(output.routing.size, routers);
  });
}
