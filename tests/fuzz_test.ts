/**
 * Mutated headers and configs: each ends in success or a `CheckpointError`, and
 * what is accepted keeps its promises.
 */

import { assert } from "@std/assert";
import { loadModel } from "../mod.ts";
import { CheckpointError } from "../src/errors.ts";
import { parseConfig } from "../src/model/config.ts";
import { parseGenerationConfig } from "../src/model/generation_config.ts";
import { ropeNumbers } from "../src/model/rope.ts";
import { openCheckpoint } from "../src/weights/checkpoint.ts";
import { checkTensors, expectedTensors } from "../src/weights/expect.ts";
import { parseSafetensorsHeader } from "../src/weights/safetensors.ts";
import { makeCheckpoint } from "./support/checkpoint.ts";
import { FAMILY_NAMES, familyConfig, reducedConfig } from "./support/family.ts";
import { Random } from "./support/numbers.ts";
import { openLibraries } from "./support/open_library.ts";

openLibraries();

const HEADERS = 8000;
const CONFIGS = 8000;
const FOLDERS = 300;

const HOSTILE: readonly unknown[] = [
  0,
  -1,
  1,
  2,
  3,
  0.5,
  -0,
  127,
  2 ** 31,
  2 ** 32 + 1,
  2 ** 53,
  -(2 ** 53),
  1e308,
  1e-320,
  NaN,
  Infinity,
  null,
  true,
  false,
  "",
  "0",
  "F32",
  "\ud800",
  "__proto__",
  [],
  [[]],
  [0, 0],
  [0, 4],
  [1e300, 1e300],
  {},
  { type: "yarn" },
  "x".repeat(5000),
];

type Json = Record<string, unknown>;

/** Replaces, removes, adds or copies something somewhere in `json`. */
function mutateJson(json: Json, random: Random): void {
  const hostile = () => structuredClone(random.pick(HOSTILE));
  let at: Json = json;
  for (;;) {
    const keys = Object.keys(at);
    const inner = keys.map((key) => at[key]).filter((value): value is Json =>
      typeof value === "object" && value !== null
    );
    if (inner.length > 0 && random.uniform() < 0.6) {
      at = random.pick(inner);
      continue;
    }
    const key = keys.length > 0 ? random.pick(keys) : "new";
    const choice = random.uniform();
    if (choice < 0.55) at[key] = hostile();
    else if (choice < 0.7) delete at[key];
    else if (choice < 0.8) at[`${key}x`] = structuredClone(at[key]);
    else if (choice < 0.9) {
      at[key] = structuredClone(at[random.pick(["new", ...keys])]);
    } else if (typeof at[key] === "number") {
      at[key] = at[key] + random.pick([-1, 1, 4, 0.25]);
    } else at[key] = hostile();
    return;
  }
}

/** Flips, inserts, removes or cuts bytes. */
function mutateBytes(bytes: Uint8Array, random: Random): Uint8Array {
  let list = [...bytes];
  for (let i = random.integer(4); i >= 0; i--) {
    const at = random.integer(list.length + 1);
    const choice = random.uniform();
    if (choice < 0.5) list[at] = (list[at] ?? 0) ^ (1 << random.integer(8));
    else if (choice < 0.7) list.splice(at, 0, random.integer(256));
    else if (choice < 0.9) list.splice(at, 1 + random.integer(3));
    else list = list.slice(0, at);
  }
  return Uint8Array.from(list);
}

/** Runs a parser; anything but success or a `CheckpointError` fails. */
function attempt<T>(parse: () => T, input: () => unknown): T | undefined {
  try {
    return parse();
  } catch (error) {
    if (error instanceof CheckpointError) {
      assert(error.message.length < 1000, "a message that long helps nobody");
      return undefined;
    }
    throw new Error(`input: ${input()}`, { cause: error });
  }
}

Deno.test("parseSafetensorsHeader() survives mutated headers", () => {
  const random = new Random(11);
  const encoder = new TextEncoder();
  const sizes: Record<string, number> = { F32: 4, BF16: 2, U8: 1, F8_E4M3: 1 };
  let accepted = 0;
  for (let round = 0; round < HEADERS; round++) {
    const header: Json = { __metadata__: { format: "pt" } };
    let offset = 0;
    for (let i = random.integer(5); i >= 0; i--) {
      const dtype = random.pick(Object.keys(sizes));
      const shape = [random.integer(4), 1 + random.integer(3)];
      const end = offset + sizes[dtype] * shape[0] * shape[1];
      header[`tensor.${i}`] = { dtype, shape, data_offsets: [offset, end] };
      offset = end;
    }
    const structural = random.uniform() < 0.7;
    if (structural) {
      for (let i = random.integer(2); i >= 0; i--) mutateJson(header, random);
    }
    let json: Uint8Array = encoder.encode(JSON.stringify(header));
    if (!structural) json = mutateBytes(json, random);
    const fileBytes = 8 + json.length + offset;
    const parsed = attempt(
      () => parseSafetensorsHeader(json, fileBytes, "x"),
      () => new TextDecoder().decode(json),
    );
    if (parsed === undefined) continue;
    accepted++;
    let covered = 0;
    for (const { begin, end } of parsed.tensors.values()) {
      assert(begin >= parsed.dataOffset && begin <= end && end <= fileBytes);
      covered += end - begin;
    }
    assert(covered === offset);
  }
  assert(accepted > 100 && accepted < HEADERS / 2, `${accepted}`);
});

Deno.test("parseConfig() survives mutated configs", () => {
  const random = new Random(12);
  let accepted = 0;
  for (let round = 0; round < CONFIGS; round++) {
    const name = random.pick(FAMILY_NAMES);
    const json = random.uniform() < 0.5
      ? familyConfig(name)
      : reducedConfig(name);
    for (let i = random.integer(3); i >= 0; i--) mutateJson(json, random);
    const input = () => JSON.stringify(json);
    attempt(() => parseGenerationConfig(json, "g", 100), input);
    const config = attempt(() => parseConfig(json, "x"), input);
    if (config === undefined) continue;
    accepted++;
    const rope = ropeNumbers(config);
    assert(rope.inverseFrequencies.every((f) => f > 0 && f <= 1), input());
    assert(rope.softmaxScale > 0 && rope.softmaxScale < Infinity, input());
    assert(rope.cosSinMultiplier > 0, input());
    let count = 0;
    for (const { shape } of expectedTensors(config)) {
      assert(shape.every((n) => Number.isSafeInteger(n) && n > 0), input());
      if (++count === 50) break;
    }
    attempt(() => checkTensors(config, new Map(), "x"), input);
  }
  assert(accepted > 100 && accepted < CONFIGS / 1.5, `${accepted}`);
});

Deno.test("openCheckpoint() and loadModel() survive mutated files", async () => {
  const random = new Random(13);
  const folder = await Deno.makeTempDir();
  try {
    await makeCheckpoint(folder, {
      ...reducedConfig("v3"),
      num_hidden_layers: 2,
      first_k_dense_replace: 1,
      n_group: 1,
      topk_group: 1,
      n_routed_experts: 2,
      num_experts_per_tok: 1,
    }, { shards: 2, dtype: "fp8" });
    const files: string[] = [];
    for await (const { name } of Deno.readDir(folder)) files.push(name);
    files.sort();
    let accepted = 0;
    for (let round = 0; round < FOLDERS; round++) {
      const path = `${folder}/${random.pick(files)}`;
      const bytes = await Deno.readFile(path);
      // Of a weight file only the header matters, and its length.
      const head = Math.min(bytes.length, 2000);
      const changed = mutateBytes(bytes.subarray(0, head), random);
      const mutated = new Uint8Array(changed.length + bytes.length - head);
      mutated.set(changed);
      mutated.set(bytes.subarray(head), changed.length);
      await Deno.writeFile(path, mutated);
      try {
        await openCheckpoint(folder);
        accepted++;
        // What is accepted reaches the library.
        await using model = await loadModel(folder, { threads: 1 });
        await model.forward([1, 2]);
      } catch (error) {
        if (!(error instanceof CheckpointError)) {
          throw new Error(`round ${round}, ${path}`, { cause: error });
        }
      }
      await Deno.writeFile(path, bytes);
    }
    assert(accepted < FOLDERS / 2, `${accepted}`);
    await openCheckpoint(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
