/**
 * Mutated calls for files, weights, constants, pools, pages and devices, and calls that lack a
 * handle or a struct of the right size: each ends in success or in a status with a message.
 */
import { assert, assertEquals } from "@std/assert";
import { NativeDevice, NativeModel, openLibrary } from "../ffi/mod.ts";
import { Status } from "../ffi/enums.ts";
import { ErrorBuffer } from "../ffi/status.ts";
import {
  DeviceInfo,
  DeviceOptions,
  Memory,
  PoolDesc,
  ProgramDesc,
  Sampling,
  Step,
  WeightDesc,
  WeightPart,
} from "../ffi/structs.ts";
import { inFolder } from "./support/folder.ts";
import { Random } from "./support/numbers.ts";

// Before the tests: a library opened within one counts as a leak of it.
const { symbols } = openLibrary();

const WEIGHTS = 3000;
const PAGES = 3000;
const SAMPLINGS = 2000;

/** [rows, cols]: fitting the file, beyond it, and beyond any memory. */
const SHAPES: readonly (readonly [bigint, bigint])[] = [
  ...[[1n, 1n], [3n, 5n], [16n, 8n], [130n, 7n], [200n, 129n]] as const,
  ...[[0n, 5n], [-1n, 5n], [5n, -1n], [1n, 2n ** 31n]] as const,
  [2n ** 31n - 1n, 2n ** 31n - 1n],
  [2n ** 31n - 1n, 65536n],
  [2n ** 62n, 4n],
  [2n ** 40n, 2n ** 40n],
  [-(2n ** 63n), -(2n ** 63n)],
];
const COUNTS = [0, -1, 300, 65537, 2 ** 31 - 1];
const SMALL = [-1, 0, 1, 2, 3, 4, 7, 8, 9, 64, 65, 2 ** 31 - 1, -(2 ** 31)];

/** A status of the library: OK, an id, or an error that says what is wrong. */
function settle(result: number, err: ErrorBuffer, input: unknown): boolean {
  const text = () =>
    JSON.stringify(
      input,
      (_, value) => typeof value === "bigint" ? `${value}n` : value,
    );
  if (result >= 0 && err.message() === "") return true;
  const status = Math.abs(result);
  const expected: readonly number[] = [
    Status.ARGUMENT,
    Status.MEMORY,
    Status.IO,
    Status.DEVICE,
    Status.CANCELLED,
  ];
  assert(expected.includes(status), `status ${status}: ${text()}`);
  assert(err.message().length > 5, `no message: ${text()}`);
  return false;
}

function withModel(test: (model: NativeModel) => void | Promise<void>) {
  return async () => {
    using device = new NativeDevice({ threads: 2 });
    using model = new NativeModel(device);
    await test(model);
  };
}

Deno.test(
  "weights and constants survive mutated shapes and places",
  withModel((model) =>
    inFolder(async (folder) => {
      const random = new Random(31);
      const bytes = Uint8Array.from(
        { length: 9001 },
        () => random.integer(256),
      );
      const path = `${folder}/weights`;
      await Deno.writeFile(path, bytes);
      await Deno.writeFile(`${folder}/empty`, new Uint8Array());
      model.addFile(path);
      model.addFile(`${folder}/empty`);
      const offsets = [0n, 1n, 2n, 3n, 4n, 8000n, 8999n, 9000n, 9001n, 9002n];
      offsets.push(2n ** 63n, 2n ** 64n - 1n, 2n ** 64n - 9001n);
      let loaded = 0;
      for (let round = 0; round < WEIGHTS; round++) {
        const fits = random.uniform() < 0.6;
        const [rows, cols] = random.pick(fits ? SHAPES.slice(0, 4) : SHAPES);
        const count = round % 500 === 0
          ? 65536
          : random.pick(fits ? [1, 1, 2, 3] : COUNTS);
        const types = [0, 1, 2, 3, 4, 7, -1, 9];
        const desc = {
          size: random.uniform() < 0.02 ? 8 : WeightDesc.size,
          stored: random.pick(types.slice(0, random.uniform() < 0.8 ? 4 : 8)),
          dtype: random.pick(types.slice(0, random.uniform() < 0.8 ? 2 : 8)),
          count,
          rows,
          cols,
          seed: 1n,
          mean: 0,
          deviation: 1,
        };
        // As many as the library may read: it refuses more than 65536 before it looks.
        const length = count >= 1 && count <= 65536 ? count : 1;
        const place = () => ({
          file: random.pick([0, 0, 0, 0, 1, -1, 2, -2, 2 ** 31 - 1]),
          scale_file: random.pick([0, 0, 0, -1, 1, 2]),
          offset: random.pick(offsets),
          scale_offset: random.pick(offsets),
        });
        const first = place();
        const parts = Array.from(
          { length },
          () => random.uniform() < 0.8 ? first : place(),
        );
        const err = new ErrorBuffer();
        const control = new Int32Array(new SharedArrayBuffer(8));
        if (random.uniform() < 0.02) control[0] = 1;
        const input = { desc, first };
        const id = await symbols.moela_model_add_weight(
          model.handle,
          WeightDesc.encode(desc),
          WeightPart.encodeAll(parts),
          control,
          err.bytes,
          err.length,
        );
        if (!settle(id, err, input)) continue;
        loaded++;
        const elements = Number(rows * cols);
        const ref = { id, rows: Number(rows), cols: Number(cols), count };
        const part = random.integer(count);
        const out = model.readWeight({ ...ref, dtype: "f32" }, part);
        assertEquals(out.length, elements);
      }
      assert(loaded > WEIGHTS / 20, `${loaded}`);
      for (let round = 0; round < WEIGHTS / 3; round++) {
        const [rows, cols] = random.pick(SHAPES);
        const data = new Uint8Array(random.pick([8, 60, 120, 512, 3640]));
        const dtype = random.pick([0, 1, 7, 8, 2, -1]);
        const count = random.pick([1, 2, ...COUNTS]);
        const err = new ErrorBuffer();
        const id = symbols.moela_model_add_constant(
          model.handle,
          dtype,
          count,
          rows,
          cols,
          data,
          BigInt(data.length),
          err.bytes,
          err.length,
        );
        settle(id, err, { dtype, count, rows, cols, bytes: data.length });
        const read = new ErrorBuffer();
        const status = symbols.moela_model_read_weight(
          model.handle,
          random.pick([id, ...SMALL]),
          random.pick(SMALL),
          data,
          BigInt(data.length),
          read.bytes,
          read.length,
        );
        settle(-status, read, "read_weight");
      }
    })
  ),
);

Deno.test(
  "pools and pages survive mutated shapes and ids",
  withModel((model) => {
    const random = new Random(32);
    const shape = { dtype: 0, layers: 2, kv_lora_rank: 6, qk_rope_head_dim: 4 };
    const large = [4096, 4097, 65536, 65537, 2 ** 31 - 1];
    let made = 0;
    for (let round = 0; round < PAGES / 3; round++) {
      const desc = { size: PoolDesc.size, ...shape, max_pages: 9 };
      for (let i = random.integer(3); i > 0; i--) {
        const name = random.pick(Object.keys(desc) as (keyof typeof desc)[]);
        desc[name] = name === "size"
          ? random.pick([0, 8, 1 << 20])
          : random.pick([...SMALL, ...large]);
      }
      const err = new ErrorBuffer();
      const id = symbols.moela_model_add_pool(
        model.handle,
        PoolDesc.encode(desc),
        err.bytes,
        err.length,
      );
      if (settle(id, err, desc)) made++;
    }
    assert(made > 50, `${made}`);
    const pool = model.addPool({ ...shape, dtype: "bf16", max_pages: 9 });
    const bytes = model.pageBytes(pool);
    assertEquals(bytes, 2 * 64 * 10 * 2);
    let worked = 0;
    for (let round = 0; round < PAGES; round++) {
      const at = random.uniform() < 0.8 ? pool : random.pick(SMALL);
      const page = () => random.pick([0, 1, 5, 8, ...SMALL]);
      const size = random.pick([bytes, bytes, bytes - 1, bytes + 1, 0]);
      const data = new Uint8Array(Math.max(size, 1));
      const err = new ErrorBuffer();
      const tail = [err.bytes, err.length] as const;
      const ids = Int32Array.from({ length: 1 + random.integer(4) }, page);
      const { handle } = model;
      const length = BigInt(size);
      const calls: (() => number)[] = [
        () =>
          symbols.moela_pool_read(handle, at, page(), data, length, ...tail),
        () =>
          symbols.moela_pool_write(handle, at, page(), data, length, ...tail),
        () => symbols.moela_pool_release(handle, at, ids, ids.length, ...tail),
        () => symbols.moela_pool_release(handle, at, ids, -1, ...tail),
        () =>
          symbols.moela_pool_copy(
            handle,
            at,
            page(),
            page(),
            random.pick([0, 1, 63, 64, 65, -1, 2 ** 31 - 1]),
            ...tail,
          ),
      ];
      if (settle(-random.pick(calls)(), err, { at, size })) worked++;
    }
    assert(worked > PAGES / 20, `${worked}`);
    model.releasePages(pool, Int32Array.of(0, 1, 2, 3, 4, 5, 6, 7, 8));
  }),
);

Deno.test("moela_filter() survives mutated samplings", () => {
  const random = new Random(33);
  const vocab = 70;
  const numbers = [...[0, -1, 0.5, 1, 2, 1e-45, 1e38], NaN, Infinity];
  let kept = 0;
  for (let round = 0; round < SAMPLINGS; round++) {
    const sampling: Record<string, number | bigint> = {
      temperature: 1,
      top_p: 0.9,
      min_p: 0.1,
      typical_p: 0.9,
      repetition_penalty: 1.2,
      presence_penalty: 0.1,
      frequency_penalty: 0.1,
      top_k: 9,
      seed: 1n,
      index: 0,
      history: 0,
      n_prompt: 3,
      n_output: 2,
      bias: 5,
      n_bias: 1,
      mask: 7,
      stop: 10,
      n_stop: 1,
      min_index: 1,
      top_logprobs: -1,
      segment: 0,
    };
    for (let i = random.integer(3); i >= 0; i--) {
      const name = random.pick(Object.keys(sampling));
      const whole = !/_p$|penalty|temperature/.test(name);
      if (name !== "seed") {
        sampling[name] = random.pick(whole ? SMALL : numbers);
      }
    }
    const aux = Int32Array.of(1, 2, 69, 4, 5, 6, 0x3f800000, -1, 7, 3, 9);
    if (random.uniform() < 0.3) aux[random.integer(11)] = random.pick(SMALL);
    const logits = Float32Array.from(
      { length: vocab },
      () => random.uniform() < 0.05 ? random.pick(numbers) : random.normal(),
    );
    const probabilities = new Float32Array(vocab);
    const err = new ErrorBuffer();
    const status = symbols.moela_filter(
      Sampling.encode(sampling),
      aux,
      random.uniform() < 0.05 ? random.pick([0, -1, 5]) : aux.length,
      logits,
      BigInt(random.uniform() < 0.05 ? random.pick([0, -1, 33]) : vocab),
      probabilities,
      err.bytes,
      err.length,
    );
    if (settle(-status, err, sampling)) kept++;
  }
  assert(kept > SAMPLINGS / 10, `${kept}`);
});

Deno.test("devices refuse options out of range", () => {
  for (const size of [0, 8, DeviceOptions.size]) {
    for (const index of SMALL) {
      for (const [threads, kernels] of [[1, 0], [-1, 0], [1025, 0], [1, 77]]) {
        const err = new ErrorBuffer();
        const handle = symbols.moela_device_create(
          DeviceOptions.encode({ size, index, threads, kernels }),
          err.bytes,
          err.length,
        );
        const right = size === DeviceOptions.size && index === 0 &&
          threads === 1 && kernels === 0;
        assertEquals(handle !== null, right);
        assertEquals(err.message() === "", right);
        symbols.moela_device_destroy(handle);
      }
    }
  }
});

Deno.test("calls without a handle or with a struct of another size say so", async () => {
  using device = new NativeDevice({ threads: 1 });
  using model = new NativeModel(device);
  const zeros = new Uint8Array(256);
  const refused = [Status.ARGUMENT, -Status.ARGUMENT];
  // Room for no message, for its zero alone, for a part of it, for all.
  for (const room of [0, 1, 8, 200]) {
    const bytes = new Uint8Array(Math.max(room, 1)).fill(7);
    const err = [bytes, BigInt(room)] as const;
    for (const handle of [null, model.handle]) {
      const results = [
        symbols.moela_model_memory(handle, zeros, ...err),
        symbols.moela_model_add_pool(handle, zeros, ...err),
        symbols.moela_model_add_program(handle, zeros, zeros, zeros, ...err),
        symbols.moela_pool_copy(handle, 0, 0, 0, 0, ...err),
        symbols.moela_pool_release(handle, 0, zeros, 1, ...err),
        symbols.moela_pool_read(handle, 0, 0, zeros, 8n, ...err),
        symbols.moela_pool_write(handle, 0, 0, zeros, 8n, ...err),
        Number(symbols.moela_pool_page_bytes(handle, 0, ...err)),
        symbols.moela_value_read(handle, 0, 0, 0n, 1n, zeros, ...err),
        symbols.moela_value_write(handle, 0, 0, 0n, 1n, zeros, ...err),
        symbols.moela_model_read_weight(handle, 0, 0, zeros, 8n, ...err),
        symbols.moela_model_add_file(handle, null, ...err),
        symbols.moela_model_add_constant(
          ...[handle, 0, 1, 1n, 1n, null, 4n] as const,
          ...err,
        ),
        await symbols.moela_model_add_weight(
          ...[handle, zeros, zeros, null] as const,
          ...err,
        ),
      ];
      for (const desc of [zeros, Step.encode({}), ProgramDesc.encode({})]) {
        results.push(
          await symbols.moela_model_run(
            ...[handle, desc, null, null, null, null, null, null] as const,
            ...[null, null, null, null, null] as const,
            ...err,
          ),
        );
      }
      results.forEach((result, i) =>
        assert(refused.includes(result), `call ${i}: ${result}`)
      );
    }
    const query = DeviceInfo.encode({ size: 4 });
    assertEquals(
      symbols.moela_device_query(device.handle, query, ...err),
      Status.ARGUMENT,
    );
    assertEquals(symbols.moela_model_create(null, ...err), null);
    if (room > 0) assert(bytes.includes(0), "the message has no end");
    else assertEquals(bytes[0], 7);
  }
  symbols.moela_model_destroy(null);
  symbols.moela_device_destroy(null);
  assertEquals(await symbols.moela_wait(null, 0, 1000), 0);
  const memory = Memory.encode({});
  const err = new ErrorBuffer();
  const status = symbols.moela_model_memory(
    model.handle,
    memory,
    err.bytes,
    err.length,
  );
  assertEquals(status, Status.OK);
});
