/** Sizes and ids at the C boundary that would lead out of bounds: each is refused by name. */
import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { NativeError, OutOfMemoryError } from "../mod.ts";
import {
  Kernels,
  type NativeStep,
  newControl,
  openLibrary,
  ProgramRecorder,
  type SamplingValues,
} from "../ffi/mod.ts";
import { ErrorBuffer } from "../ffi/status.ts";
import { Step, WeightDesc, WeightPart } from "../ffi/structs.ts";

// Before the tests: a library opened within one counts as a leak of it.
const { symbols } = openLibrary();

const DRAW: SamplingValues = {
  top_p: 1,
  typical_p: 1,
  repetition_penalty: 1,
  mask: -1,
  top_logprobs: -1,
};

/** A program that embeds three rows of two numbers and gives logits of `vocab`. */
function embedding(kernels: Kernels, vocab: number): ProgramRecorder {
  const table = kernels.tensor(new Float32Array(6), 3, 2);
  const head = kernels.tensor(new Float32Array(2 * vocab), vocab, 2);
  const p = new ProgramRecorder();
  p.outputs(p.linear(p.gather(p.embed(table)), head, undefined, "logits"));
  return p;
}

function step(program: number, change: Partial<NativeStep> = {}): NativeStep {
  return {
    program,
    tokens: Int32Array.of(1),
    absorbed: 1,
    segments: [{ row: 0, rows: 1, position: 0, pool: 0, page: 0, n_pages: 0 }],
    pages: new Int32Array(),
    logitRows: Int32Array.of(0),
    sampling: [DRAW],
    entries: new Int32Array(new SharedArrayBuffer(4 * 4 * 5)),
    control: newControl(),
    ...change,
  };
}

Deno.test("addProgram() refuses operands that do not exist, used or not", () => {
  using kernels = new Kernels({ threads: 1 });
  for (const field of ["in", "out", "weight"] as const) {
    for (const id of [99, 2 ** 31 - 1, -2]) {
      const program = embedding(kernels, 3);
      const ids = [...program.ops[0][field] ?? []];
      ids[ids.length - 1] = id;
      program.ops[0][field] = ids;
      assertThrows(
        () => kernels.model.addProgram(program, 1, 1),
        NativeError,
        "operation 0 (kind 0): an operand does not exist",
      );
    }
  }
});

Deno.test("addProgram() refuses a plan of other rows or experts", () => {
  using kernels = new Kernels({ threads: 1 });
  const gate = kernels.tensor(new Float32Array(4 * 3 * 2), 3, 2);
  assertEquals(gate.count, 4);
  const record = (experts: number) => {
    const p = new ProgramRecorder();
    const plan = p.moePlan(p.input(2, "i32"), experts);
    p.gateUp(p.input(2), gate, gate, plan);
    return p;
  };
  kernels.model.addProgram(record(4), 1, 1);
  for (const change of ["rows", "experts"] as const) {
    const program = record(change === "experts" ? 5 : 4);
    if (change === "rows") program.ops[0].rows = 1;
    assertThrows(
      () => kernels.model.addProgram(program, 1, 1),
      NativeError,
      "the plan is of other rows or experts",
    );
  }
});

Deno.test("addProgram() refuses layers, rows and values beyond reason", () => {
  using kernels = new Kernels({ threads: 1 });
  const { model } = kernels;
  for (const layer of [4096, 2 ** 31 - 1]) {
    const p = new ProgramRecorder();
    const shape = {
      num_attention_heads: 1,
      qk_nope_head_dim: 2,
      v_head_dim: 2,
      kv_lora_rank: 2,
      qk_rope_head_dim: 2,
    };
    p.mlaDecode(p.input(4), layer, shape);
    assertThrows(
      () => model.addProgram(p, 1, 1),
      NativeError,
      "a layer is out of range",
    );
  }
  const wide = embedding(kernels, 3);
  for (let i = 0; i < 1000; i++) wide.input(2 ** 31 - 1);
  assertThrows(
    () => model.addProgram(wide, 65536, 1),
    NativeError,
    "the values are larger than any memory",
  );
  const large = embedding(kernels, 3);
  large.input(2 ** 31 - 1);
  const error = assertThrows(
    () => model.addProgram(large, 4096, 1),
    OutOfMemoryError,
    "workspace",
  );
  assert(error.bytesAsked > 2 ** 44 && error.bytesFree < error.bytesAsked);
  const plan = new ProgramRecorder();
  plan.moePlan(plan.input(2 ** 20, "i32"), 4);
  assertThrows(
    () => model.addProgram(plan, 65536, 1),
    NativeError,
    "a plan has too many slots",
  );
});

Deno.test("run() refuses to feed draws that have no embedding", async () => {
  using kernels = new Kernels({ threads: 1 });
  const { model } = kernels;
  const wide = model.addProgram(embedding(kernels, 4), 1, 1);
  await model.run(step(wide));
  await assertRejects(
    () => model.run(step(wide, { steps: 2 })),
    NativeError,
    "draws tokens that have no embedding",
  );
  const right = model.addProgram(embedding(kernels, 3), 1, 1);
  const several = step(right, { steps: 5 });
  await model.run(several);
  assertEquals(several.control[1], 5);
});

Deno.test("run() refuses arrays that are shorter than the step says", async () => {
  using kernels = new Kernels({ threads: 1 });
  const { model } = kernels;
  const program = model.addProgram(embedding(kernels, 3), 1, 1);
  const entries = (n: number) => new Int32Array(new SharedArrayBuffer(4 * n));
  const cases: [Partial<NativeStep>, string][] = [
    [{ logits: new Float32Array(2) }, "logits has 2 elements, and 3 are"],
    [{ targets: new Int32Array() }, "targets has 0 elements, and 1 are"],
    [{ logprobs: new Float32Array() }, "logprobs has 0 elements, and 1 are"],
    [{ control: entries(7) }, "control has 7 elements, and 8 are"],
    [{ entries: entries(3) }, "entries has 3 elements, and 4 are"],
    [{ entries: undefined }, "entries has 0 elements, and 4 are"],
    [{ steps: 6 }, "entries has 20 elements, and 24 are"],
    [{ entryWords: 21 }, "entries has 20 elements, and 21 are"],
  ];
  for (const [change, message] of cases) {
    await assertRejects(
      () => model.run(step(program, change)),
      RangeError,
      `Cannot run the step: ${message} needed`,
    );
  }
});

Deno.test("run() refuses indices that would overflow", async () => {
  using kernels = new Kernels({ threads: 1 });
  const { model } = kernels;
  const program = model.addProgram(embedding(kernels, 3), 1, 1);
  const sampling = [{ ...DRAW, index: 2 ** 31 - 1 }];
  await assertRejects(
    () => model.run(step(program, { sampling })),
    NativeError,
    "a sampling option is out of range",
  );
  const segments = [{ ...step(program).segments[0], position: 2 ** 31 - 1 }];
  await assertRejects(
    () => model.run(step(program, { segments })),
    NativeError,
    "a position is out of range",
  );
});

Deno.test("structs refuse numbers that their fields do not hold", () => {
  for (const steps of [2 ** 31, -(2 ** 31) - 1, 0.5, NaN, Infinity]) {
    assertThrows(
      () => Step.encode({ steps }),
      RangeError,
      `moela_step.steps is ${steps}, and must be of type i32`,
    );
  }
  for (const seed of [-1n, 2n ** 64n]) {
    assertThrows(() => WeightDesc.encode({ seed }), RangeError, "u64");
  }
  assertThrows(() => WeightDesc.encode({ rows: 2n ** 63n }), RangeError, "i64");
  assertThrows(() => WeightDesc.encode({ size: -1 }), RangeError, "u32");
});

Deno.test("a weight whose size overflows is refused, generated or not", async () => {
  using kernels = new Kernels({ threads: 1 });
  const { handle } = kernels.model;
  // 2^16 parts of 2^26 by 2^20 elements of 4 bytes: 2^64 bytes.
  const count = 65536;
  const err = new ErrorBuffer();
  const id = await symbols.moela_model_add_weight(
    handle,
    WeightDesc.encode({ count, rows: 2n ** 26n, cols: 2n ** 20n }),
    WeightPart.encodeAll(new Array(count).fill({ file: -1, scale_file: -1 })),
    null,
    err.bytes,
    err.length,
  );
  assertEquals(id, -1);
  assertStringIncludes(err.message(), "a weight is larger than any model's");
  const constant = new ErrorBuffer();
  assertEquals(
    symbols.moela_model_add_constant(
      handle,
      8,
      1,
      2n ** 31n - 1n,
      2n ** 31n - 1n,
      new Uint8Array(8),
      8n,
      constant.bytes,
      constant.length,
    ),
    -1,
  );
  assertStringIncludes(constant.message(), "too large");
});

Deno.test("addPool() refuses more pages than there are addresses for", () => {
  using kernels = new Kernels({ threads: 1 });
  const shape = {
    dtype: "f32",
    layers: 4096,
    kv_lora_rank: 65536,
    qk_rope_head_dim: 65536,
  } as const;
  // 2^37 bytes a page: 2^27 of them are 2^64 bytes.
  assertThrows(
    () => kernels.model.addPool({ ...shape, max_pages: 2 ** 27 }),
    NativeError,
    "pool larger than any address space",
  );
  // Many small pages take memory only when they are used.
  const free = kernels.device.info().memoryFree;
  kernels.model.addPool({
    dtype: "f32",
    layers: 1,
    kv_lora_rank: 2,
    qk_rope_head_dim: 2,
    max_pages: 2 ** 31 - 1,
  });
  assert(free - kernels.device.info().memoryFree < 2 ** 30);
});
