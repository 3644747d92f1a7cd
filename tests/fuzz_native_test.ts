/**
 * Mutated calls at the C boundary: each ends in success or in an error that says why, and what the
 * library computes stays the same. Under `deno task sanitize` the smallest wrong access ends it.
 */
import { assert, assertEquals } from "@std/assert";
import {
  loadModel,
  type Model,
  NativeError,
  OutOfMemoryError,
} from "../mod.ts";
import {
  type NativeModel,
  type NativeStep,
  newControl,
  openLibrary,
  type ProgramRecorder,
  type SamplingValues,
} from "../ffi/mod.ts";
import { makeCheckpoint } from "./support/checkpoint.ts";
import { reducedConfig } from "./support/family.ts";
import { inFolder } from "./support/folder.ts";
import { Random } from "./support/numbers.ts";
import { assertSameBits, type Floats } from "./support/ops.ts";

// Before the tests: a library opened within one counts as a leak of it.
openLibrary();

const PROGRAMS = 6000;
const STEPS = 10000;

const ROWS = 16;
const LOGITS = 4;

const INTEGERS: readonly number[] = [
  ...[-1, 0, 1, 2, 3, 4, 5, 7, 8, 12, 16, 63, 64, 65, 200, 1000, 4096, 65536],
  ...[2 ** 31 - 1, 2 ** 31 - 64, -(2 ** 31), 2 ** 31, 2 ** 32 + 1, 0.5, NaN],
];
const FLOATS: readonly number[] = [
  ...[0, -1, 0.5, 1, 2, 1e-45, 1e-30, 1e38, NaN, Infinity, -Infinity],
];

/** V3's architecture, as small as it goes. */
const TINY = {
  ...reducedConfig("v3"),
  vocab_size: 40,
  hidden_size: 16,
  num_hidden_layers: 2,
  first_k_dense_replace: 1,
  n_routed_experts: 8,
  n_group: 4,
  topk_group: 2,
  num_experts_per_tok: 2,
};

interface Target {
  model: Model;
  native: NativeModel;
  pool: number;
  program: ProgramRecorder;
  id: number;
}

async function withTarget(test: (target: Target) => Promise<void>) {
  await inFolder(async (folder) => {
    await makeCheckpoint(folder, TINY);
    await using model = await loadModel(folder, { threads: 2 });
    const { native, recorded } = model.inspect();
    const { num_hidden_layers, kv_lora_rank, qk_rope_head_dim } = model.config;
    const pool = native.addPool({
      dtype: "f32",
      layers: num_hidden_layers,
      kv_lora_rank,
      qk_rope_head_dim,
      max_pages: 12,
    });
    const { program } = recorded;
    const id = native.addProgram(program, ROWS, LOGITS);
    await test({ model, native, pool, program, id });
  });
}

/** Two absorbed sequences and a projected one; five rows ask for logits, and are drawn from. */
function mixedStep({ pool, id }: Target): NativeStep {
  const sampling: SamplingValues = {
    temperature: 1,
    top_p: 0.9,
    typical_p: 0.95,
    min_p: 0.01,
    top_k: 20,
    repetition_penalty: 1.1,
    presence_penalty: 0.1,
    frequency_penalty: 0.1,
    seed: 5n,
    index: 3,
    history: 0,
    n_prompt: 3,
    n_output: 2,
    bias: 5,
    n_bias: 1,
    mask: 7,
    stop: 9,
    n_stop: 2,
    min_index: 5,
    top_logprobs: 3,
  };
  return {
    program: id,
    tokens: Int32Array.from({ length: 12 }, (_, i) => 3 * i + 1),
    absorbed: 6,
    segments: [
      { row: 0, rows: 5, position: 66, pool, page: 0, n_pages: 2 },
      { row: 5, rows: 1, position: 0, pool, page: 2, n_pages: 1 },
      { row: 6, rows: 6, position: 60, pool, page: 3, n_pages: 2 },
    ],
    pages: Int32Array.of(3, 4, 5, 6, 7),
    logitRows: Int32Array.of(0, 4, 5, 6, 11),
    targets: Int32Array.of(1, -1, 39, 0, 2),
    sampling: Array.from({ length: 5 }, (_, segment) => ({
      ...sampling,
      temperature: segment % 2,
      segment,
    })),
    aux: Int32Array.of(1, 2, 3, 4, 5, 6, 0x3f800000, -1, 255, 8, 9),
    logits: new Float32Array(5 * 40),
    logprobs: new Float32Array(5),
    entries: new Int32Array(new SharedArrayBuffer(4 * 5 * 10)),
    entryWords: 10,
    control: newControl(),
  };
}

/** Three sequences that decode for several steps. */
function decodeStep(target: Target): NativeStep {
  const { sampling = [], aux } = mixedStep(target);
  return {
    program: target.id,
    tokens: Int32Array.of(1, 2, 3),
    absorbed: 3,
    segments: [
      { row: 0, rows: 1, position: 62, pool: target.pool, page: 0, n_pages: 2 },
      { row: 1, rows: 1, position: 0, pool: target.pool, page: 2, n_pages: 1 },
      { row: 2, rows: 1, position: 9, pool: target.pool, page: 3, n_pages: 1 },
    ],
    pages: Int32Array.of(3, 4, 5, 6),
    logitRows: Int32Array.of(0, 1, 2),
    sampling: sampling.slice(0, 3),
    aux,
    entries: new Int32Array(new SharedArrayBuffer(4 * 3 * 10 * 6)),
    entryWords: 10,
    steps: 6,
    control: newControl(),
  };
}

/** Success, or an error whose message helps; anything else fails the test. */
async function attempt<T>(
  call: () => T | Promise<T>,
  input: () => unknown,
): Promise<T | undefined> {
  try {
    return await call();
  } catch (error) {
    const known = error instanceof NativeError ||
      error instanceof OutOfMemoryError || error instanceof RangeError;
    if (known && error.message.length > 20) return undefined;
    const text = JSON.stringify(
      input(),
      (_, value) => typeof value === "bigint" ? `${value}n` : value,
    );
    throw new Error(`input: ${text}`, { cause: error });
  }
}

type Numbers = Record<string, number | bigint | readonly number[]>;

/** Gives one field of a struct another value. */
function mutateFields(fields: Numbers, random: Random) {
  const name = random.pick(Object.keys(fields));
  const value = fields[name];
  if (typeof value === "bigint") {
    fields[name] = random.pick([0n, 1n, -1n, 64n, 2n ** 31n, 2n ** 63n - 1n]);
  } else if (typeof value === "number") {
    fields[name] = random.pick(
      random.uniform() < 0.1 || !Number.isInteger(value) ? FLOATS : INTEGERS,
    );
  } else {
    const items = [...value];
    items[random.integer(items.length)] = random.pick(
      random.uniform() < 0.5 ? items : name === "f" ? FLOATS : INTEGERS,
    );
    fields[name] = items;
  }
}

function mutateProgram(program: ProgramRecorder, random: Random) {
  const { values, ops } = program;
  const op = random.integer(ops.length);
  switch (random.integer(10)) {
    case 0:
      ops.splice(op, 1);
      return;
    case 1:
      ops.splice(random.integer(ops.length), 0, structuredClone(ops[op]));
      return;
    case 2:
      ops.push(...ops.splice(op, 1));
      return;
    case 3:
      mutateFields(random.pick(values) as Numbers, random);
      return;
    case 4:
      values.splice(random.integer(values.length), 1);
      return;
    case 5:
    case 6: {
      // Operands of another operation: often of the same shape.
      const field = random.pick(["in", "out", "weight"] as const);
      ops[op][field] = structuredClone(random.pick(ops)[field]);
      return;
    }
    default:
      mutateFields(ops[op] as Numbers, random);
  }
}

function cloneProgram({ values, ops }: ProgramRecorder): ProgramRecorder {
  const recorder = structuredClone({ values, ops, keepAll: false });
  return recorder as unknown as ProgramRecorder;
}

/** A sequence from its first token: what it gives depends on nothing that was there before. */
async function canary(target: Target): Promise<Floats> {
  const logits = new Float32Array(3 * 40);
  const { pool, id: program } = target;
  await target.native.run({
    program,
    tokens: Int32Array.of(5, 6, 7, 8, 9, 10, 11, 12),
    absorbed: 4,
    segments: [
      { row: 0, rows: 4, position: 0, pool, page: 0, n_pages: 1 },
      { row: 4, rows: 4, position: 0, pool, page: 1, n_pages: 1 },
    ],
    pages: Int32Array.of(10, 11),
    logitRows: Int32Array.of(0, 3, 7),
    logits,
    control: newControl(),
  });
  return logits;
}

Deno.test("addProgram() and run() survive mutated programs", () =>
  withTarget(async (target) => {
    const { native } = target;
    const random = new Random(21);
    const before = await canary(target);
    let accepted = 0, ran = 0;
    for (let round = 0; round < PROGRAMS; round++) {
      const program = cloneProgram(target.program);
      for (let i = random.integer(3); i >= 0; i--) {
        mutateProgram(program, random);
      }
      const hostile = random.uniform() < 0.1;
      const rows = hostile ? random.pick(INTEGERS) : ROWS;
      const logits = hostile ? random.pick(INTEGERS) : LOGITS;
      const input = () => [program.values, program.ops, rows, logits];
      const id = await attempt(
        () => native.addProgram(program, rows, logits),
        input,
      );
      if (id === undefined) continue;
      accepted++;
      const step = random.uniform() < 0.7
        ? mixedStep(target)
        : decodeStep(target);
      // All absorbed or all projected: operations over no rows at all.
      if (random.uniform() < 0.3) {
        step.absorbed = random.pick([0, step.tokens.length]);
      }
      const done = await attempt(async () => {
        await native.run({ ...step, program: id });
        return true;
      }, input);
      if (done) ran++;
      for (const [value, { keep }] of program.values.entries()) {
        if (!keep) continue;
        await attempt(
          () => native.writeValue(id, { id: value, cols: 1 }, step.tokens),
          input,
        );
      }
    }
    assert(accepted > PROGRAMS / 20 && ran > PROGRAMS / 40, `${ran}`);
    assertSameBits(await canary(target), before, "the canary's logits");
  }));

/** Another value for an element, or another length. */
function mutateArray(
  array: Int32Array<ArrayBuffer>,
  random: Random,
): Int32Array<ArrayBuffer> {
  const choice = random.uniform();
  if (choice < 0.1) return array.slice(0, random.integer(array.length + 1));
  if (choice < 0.2) return Int32Array.of(...array, random.pick(INTEGERS));
  const copy = array.slice();
  copy[random.integer(copy.length)] = random.pick(INTEGERS);
  return copy;
}

function mutateStep(step: NativeStep, random: Random) {
  const options = [
    "targets",
    "sampling",
    "aux",
    "logits",
    "logprobs",
    "entries",
  ] as const;
  switch (random.integer(12)) {
    case 0:
      delete step[random.pick(options)];
      return;
    case 1: {
      const name = random.pick(["program", "absorbed"] as const);
      step[name] = random.pick(INTEGERS);
      return;
    }
    case 2: {
      const name = random.pick(["steps", "entryWords"] as const);
      step[name] = random.pick(INTEGERS);
      return;
    }
    case 3: {
      const name = random.pick(["logits", "logprobs"] as const);
      step[name] = step[name]?.subarray(0, random.integer(6));
      return;
    }
    case 4:
      step.entries = step.entries?.subarray(0, random.integer(60));
      return;
    case 5: {
      const segments = [...step.segments];
      segments.splice(random.integer(3), 1);
      step.segments = segments;
      return;
    }
    case 6:
    case 7: {
      const segments = structuredClone([...step.segments]);
      mutateFields(random.pick<object>(segments) as Numbers, random);
      step.segments = segments;
      return;
    }
    case 8:
    case 9: {
      const sampling = structuredClone([...step.sampling ?? []]);
      if (sampling.length === 0) return;
      mutateFields(random.pick(sampling) as Numbers, random);
      step.sampling = sampling;
      return;
    }
    default: {
      const name = random.pick(
        ["tokens", "pages", "logitRows", "targets", "aux"] as const,
      );
      const array = step[name];
      if (array && array.length > 0) step[name] = mutateArray(array, random);
    }
  }
}

Deno.test("run() survives mutated steps", () =>
  withTarget(async (target) => {
    const { native } = target;
    const random = new Random(22);
    const before = await canary(target);
    await native.run(mixedStep(target));
    await native.run(decodeStep(target));
    let ran = 0;
    for (let round = 0; round < STEPS; round++) {
      const step = random.uniform() < 0.6
        ? mixedStep(target)
        : decodeStep(target);
      for (let i = random.integer(2); i >= 0; i--) mutateStep(step, random);
      const done = await attempt(async () => {
        await native.run(step);
        return true;
      }, () => step);
      if (!done) continue;
      ran++;
      const drawn = step.entries && step.sampling ? step.control[1] : 0;
      for (let i = 0; i < drawn; i++) {
        const token = step.entries?.[i * (step.entryWords ?? 4) + 1] ?? -1;
        assert(token >= 0 && token < 40, `round ${round} drew ${token}`);
      }
    }
    assert(ran > STEPS / 20 && ran < STEPS * 0.9, `${ran}`);
    assertSameBits(await canary(target), before, "the canary's logits");
    assertEquals(native.memory().pools > 0, true);
  }));
