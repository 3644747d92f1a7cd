/** Random weights from a seed: the generator, the spread of the tensors, files made from them. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { loadModel, type Model } from "../mod.ts";
import { DType, openLibrary } from "../ffi/mod.ts";
import { ErrorBuffer } from "../ffi/status.ts";
import { shapeConfig } from "../bench/shapes.ts";
import { writeCheckpoint } from "../bench/write_checkpoint.ts";
import { isMoeLayer, parseConfig } from "../src/model/config.ts";
import { buildModel } from "../src/model/load.ts";
import { generatedSource } from "../src/weights/bind.ts";
import { openCheckpoint } from "../src/weights/checkpoint.ts";
import { tensorKey } from "../src/weights/generated.ts";
import { type FamilyName, reducedConfig } from "./support/family.ts";
import { inFolder } from "./support/folder.ts";
import { toBf16 } from "./support/numbers.ts";
import { assertSameBits } from "./support/ops.ts";

const { symbols } = openLibrary();

/** What the tests ask of `moela_generate`. */
interface Tensor {
  seed?: bigint;
  key?: bigint;
  begin?: number;
  count: number;
  mean?: number;
  deviation?: number;
}

function generate(tensor: Tensor, dtype: "f32" | "bf16"): Uint8Array {
  const { seed = 1n, key = tensorKey("a"), begin = 0, count } = tensor;
  const out = new Uint8Array(count * (dtype === "f32" ? 4 : 2));
  const err = new ErrorBuffer();
  err.check(
    symbols.moela_generate(
      seed,
      key,
      BigInt(begin),
      BigInt(count),
      tensor.mean ?? 0,
      tensor.deviation ?? 1,
      DType[dtype],
      out,
      err.bytes,
      err.length,
    ),
    "Cannot generate",
  );
  return out;
}

function floats(tensor: Tensor): Float32Array<ArrayBuffer> {
  return new Float32Array(generate(tensor, "f32").slice().buffer);
}

function moments(x: Float32Array) {
  const mean = x.reduce((sum, value) => sum + value, 0) / x.length;
  const central = (power: number) =>
    x.reduce((sum, value) => sum + (value - mean) ** power, 0) / x.length;
  const deviation = Math.sqrt(central(2));
  return { mean, deviation, kurtosis: central(4) / deviation ** 4 };
}

function correlation(a: Float32Array, b: Float32Array): number {
  return a.reduce((sum, value, i) => sum + value * b[i], 0) / a.length;
}

Deno.test("tensorKey() is FNV-1a of the name", () => {
  // The test vectors of the FNV reference code.
  assertEquals(tensorKey(""), 0xcbf29ce484222325n);
  assertEquals(tensorKey("a"), 0xaf63dc4c8601ec8cn);
  assertEquals(tensorKey("foobar"), 0x85944171f73967e8n);
});

Deno.test("moela_generate gives an element the same bits wherever a call begins", () => {
  for (const dtype of ["f32", "bf16"] as const) {
    const size = dtype === "f32" ? 4 : 2;
    const whole = generate({ count: 1000, deviation: 0.02, mean: 1 }, dtype);
    for (const [begin, count] of [[0, 1], [1, 7], [8, 250], [997, 3], [5, 0]]) {
      assertEquals(
        generate({ begin, count, deviation: 0.02, mean: 1 }, dtype),
        whole.slice(begin * size, (begin + count) * size),
      );
    }
  }
  // Beyond 2^32 elements, the embedding of a large model.
  const far = floats({ begin: 2 ** 33 - 2, count: 4 });
  assertSameBits(floats({ begin: 2 ** 33, count: 2 }), far.slice(2), "far");
  assert(far[2] !== floats({ count: 1 })[0]);
});

Deno.test("moela_generate in bf16 is f32 rounded to the nearest even", () => {
  const tensor = { count: 50_000, mean: 0.3, deviation: 0.7 };
  const halves = new Uint16Array(generate(tensor, "bf16").slice().buffer);
  assertEquals(Array.from(halves), Array.from(floats(tensor), toBf16));
});

Deno.test("moela_generate has the mean, the deviation and the shape asked for", () => {
  const count = 200_000;
  const { mean, deviation, kurtosis } = moments(floats({ count }));
  assert(Math.abs(mean) < 5 / Math.sqrt(count), `mean ${mean}`);
  assert(Math.abs(deviation - 1) < 0.01, `deviation ${deviation}`);
  // Of the sum of four uniform numbers.
  assert(Math.abs(kurtosis - 2.7) < 0.05, `kurtosis ${kurtosis}`);
  const other = moments(floats({ count, mean: -2, deviation: 0.01 }));
  assert(Math.abs(other.mean + 2) < 1e-4 && other.deviation < 0.0101);
});

Deno.test("moela_generate gives unlike numbers to seeds, keys and neighbours", () => {
  const count = 50_000;
  const tensors = [
    floats({ count }),
    floats({ count, seed: 2n }),
    floats({ count, seed: 1n << 40n }),
    floats({ count, key: tensorKey("b") }),
    floats({ count, key: tensorKey("a") + 1n }),
    floats({ count, begin: 1 }),
    floats({ count, begin: 56 }),
  ];
  tensors.forEach((a, i) => {
    for (const b of tensors.slice(0, i)) {
      const found = Math.abs(correlation(a, b));
      assert(found < 5 / Math.sqrt(count), `${i}: correlation ${found}`);
    }
  });
});

const CONFIG = reducedConfig("v3");

function inMemory(json: Record<string, unknown>, keepAll = false) {
  const config = parseConfig(json, "config.json");
  return buildModel({
    config,
    source: () => generatedSource(config, 7, "bf16"),
    fingerprint: () => Promise.resolve("generated"),
    bytes: 1,
    keepAll,
  }, {});
}

const PROMPT = Array.from({ length: 150 }, (_, i) => i * 37 % 200);

async function logits(model: Model) {
  const [long, short] = [PROMPT, PROMPT.slice(0, 20)];
  const all = [
    await model.forward(long, { logits: "all" }),
    await model.forward(short, { logits: "all" }),
  ];
  return Float32Array.from(all.flatMap((rows) => Array.from(rows)));
}

for (const dtype of ["bf16", "f32"] as const) {
  Deno.test(`a ${dtype} checkpoint of writeCheckpoint() is the generated model, bit by bit`, async () => {
    await inFolder(async (parent) => {
      const folder = `${parent}/made`;
      const { shards, bytes } = await writeCheckpoint(folder, CONFIG, {
        seed: 7,
        dtype,
        shardBytes: 200_000,
      });
      const checkpoint = await openCheckpoint(folder);
      assert(shards > 3);
      assertEquals(checkpoint.files.length, shards);
      assert(checkpoint.files.every((file) => file.bytes < 250_000));
      let held = 0;
      for (const { begin, end } of checkpoint.tensors.values()) {
        held += end - begin;
      }
      assertEquals(held, bytes);
      const { config } = checkpoint;
      await using made = await loadModel(folder);
      await using generated = await buildModel({
        config,
        source: () => generatedSource(config, 7, dtype),
        fingerprint: () => Promise.resolve("generated"),
        bytes: 1,
      }, {});
      const expected = await logits(made);
      assert(expected.every(Number.isFinite));
      assertSameBits(await logits(generated), expected, "logits");
    });
  });
}

Deno.test("a checkpoint of another seed is another model", async () => {
  await inFolder(async (folder) => {
    await writeCheckpoint(folder, CONFIG, { seed: 8 });
    await using made = await loadModel(folder);
    await using generated = await inMemory(CONFIG);
    const a = await logits(made), b = await logits(generated);
    assert(a.every((value, i) => value !== b[i] || Math.abs(value) < 1e-3));
  });
});

Deno.test("writeCheckpoint() refuses a folder that holds something", async () => {
  await inFolder(async (folder) => {
    await Deno.writeTextFile(`${folder}/notes.txt`, "mine");
    await assertRejects(
      () => writeCheckpoint(folder, CONFIG),
      Error,
      `${folder} holds notes.txt, and must be new or empty`,
    );
  });
});

Deno.test("writeCheckpoint() refuses what the disk has no room for", async () => {
  await inFolder(async (folder) => {
    // 150 TB
    const json = { ...shapeConfig("v3", 100), moe_intermediate_size: 131072 };
    await assertRejects(() => writeCheckpoint(folder, json), Error, "are free");
    assertEquals([...Deno.readDirSync(folder)], []);
  });
});

Deno.test("shapeConfig() gives configs of the published sizes", () => {
  const sizes = (name: string) => {
    const c = parseConfig(shapeConfig(name), name);
    return [c.num_hidden_layers, c.hidden_size, c.n_routed_experts];
  };
  assertEquals(sizes("v2-lite"), [27, 2048, 64]);
  assertEquals(sizes("v2"), [60, 5120, 160]);
  assertEquals(sizes("moonlight"), [27, 2048, 64]);
  assertEquals(sizes("v3"), [61, 7168, 256]);
});

// As deep as published: the residual stream stays near its size, and experts are chosen neither
// evenly nor a few by all.
const DEPTHS: [FamilyName, number][] = [["v2-lite", 27], ["v2", 60], [
  "v3",
  61,
]];
for (const [name, layers] of DEPTHS) {
  Deno.test(`generated weights keep ${layers} layers of ${name} in bounds`, async () => {
    const json = { ...reducedConfig(name), num_hidden_layers: layers };
    await using model = await inMemory(json, true);
    const { config } = model;
    const last = await model.forward(PROMPT);
    const spread = moments(last).deviation;
    assert(spread > 0.3 && spread < 3, `logits spread by ${spread}`);
    const { native, programs, recorded } = model.inspect();
    const rows = PROMPT.length;
    for (const [layer, value] of recorded.hidden.entries()) {
      const state = native.readValue(
        programs.mixed,
        value,
        rows * config.hidden_size,
      );
      const size = Math.sqrt(correlation(state, state));
      assert(size > 0.8 && size < 2.5, `layer ${layer}: ${size}`);
    }
    for (const [layer, router] of recorded.routers.entries()) {
      assertEquals(router !== undefined, isMoeLayer(config, layer));
      if (!router) continue;
      const k = config.num_experts_per_tok, experts = config.n_routed_experts;
      const load = new Float32Array(experts);
      for (
        const e of native.readIds(programs.mixed, router.experts, rows * k)
      ) {
        load[e] += experts / rows / k;
      }
      const { deviation } = moments(load);
      assert(
        deviation > 0.25 && deviation < 1.6,
        `layer ${layer}: loads spread by ${deviation} of their mean`,
      );
    }
  });
}
