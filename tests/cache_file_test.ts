/** `cache.save()` and `model.loadCache()`. */
import {
  assert,
  assertEquals,
  assertNotEquals,
  assertRejects,
} from "@std/assert";
import { CacheBusyError, CacheFileError, loadModel } from "../mod.ts";
import { checkpointFolder } from "./support/fixtures.ts";
import { type Checkpoint, openCheckpoint } from "../src/weights/checkpoint.ts";
import { fingerprint } from "../src/weights/fingerprint.ts";
import { inFolder } from "./support/folder.ts";
import { openLibraries } from "./support/open_library.ts";
import { Random } from "./support/numbers.ts";
import { assertSameBits } from "./support/ops.ts";

openLibraries();
const NANO = new URL("../models/nano/", import.meta.url);
const TINY = checkpointFolder("tiny-v2");

function randomTokens(count: number, below: number, seed: number) {
  const random = new Random(seed);
  return Array.from({ length: count }, () => random.integer(below));
}

Deno.test("a saved cache goes on with the same bits, also in another model", async () => {
  const folder = await Deno.makeTempDir();
  try {
    for (const type of ["f32", "bf16"] as const) {
      await using model = await loadModel(NANO);
      const cache = model.createCache({ type });
      await model.forward(randomTokens(150, 4096, 1), { cache });
      const path = `${folder}/${type}.cache`;
      await cache.save(path);
      const expected = await model.forward([5, 6], { cache });
      await using other = await loadModel(NANO, { threads: 1 });
      const loaded = await other.loadCache(new URL(`file://${path}`));
      assertEquals(loaded.type, type);
      assertEquals(loaded.tokens, randomTokens(150, 4096, 1));
      const logits = await other.forward([5, 6], { cache: loaded });
      assertSameBits(
        new Float32Array(logits),
        new Float32Array(expected),
        type,
      );
      // Saving again replaces the file; an empty cache can be saved, too.
      loaded.truncate(0);
      await loaded.save(path);
      assertEquals((await model.loadCache(path)).length, 0);
    }
    const left = Array.from(Deno.readDirSync(folder), ({ name }) => name);
    assertEquals(left.sort(), ["bf16.cache", "f32.cache"]);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("loadCache() refuses what belongs elsewhere", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const path = `${folder}/saved.cache`;
    await using model = await loadModel(TINY);
    const cache = model.createCache();
    await model.forward([1, 2, 3], { cache });
    await cache.save(path);
    await using nano = await loadModel(NANO);
    await assertRejects(
      () => nano.loadCache(path),
      CacheFileError,
      "the checkpoint",
    );
    await using other = await loadModel(TINY, { weights: "bf16" });
    await assertRejects(
      () => other.loadCache(path),
      CacheFileError,
      "the weights' type",
    );
    await assertRejects(() => model.loadCache(folder), Error);
    await assertRejects(
      () => model.loadCache(`${folder}/absent`),
      Deno.errors.NotFound,
    );
    await assertRejects(
      () => model.loadCache(new URL("model.safetensors", TINY)),
      Error,
    );
    await assertRejects(
      () => model.loadCache(5 as unknown as string),
      TypeError,
    );
    assertEquals(model.memory().caches, 36864);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("a cache belongs to every bit of the weights", async () => {
  await inFolder(async (folder) => {
    for (const { name } of Deno.readDirSync(NANO)) {
      await Deno.copyFile(new URL(name, NANO), `${folder}/${name}`);
    }
    const saved = `${folder}/saved.cache`;
    {
      await using model = await loadModel(folder);
      const cache = model.createCache();
      await model.forward([1, 2, 3], { cache });
      await cache.save(saved);
      await model.loadCache(saved);
    }
    const { tensors } = await openCheckpoint(folder);
    const { path, begin, end } = tensors.get("model.embed_tokens.weight")!;
    const bytes = await Deno.readFile(path);
    // A weight between those that samples would see.
    bytes[begin + Math.floor((end - begin) / 3) + 77] ^= 1;
    await Deno.writeFile(path, bytes);
    await using other = await loadModel(folder);
    await assertRejects(
      () => other.loadCache(saved),
      CacheFileError,
      "the checkpoint is",
    );
  });
});

Deno.test("the digest of large weights sees the beginning of every MiB, and ends", async () => {
  await inFolder(async (folder) => {
    const path = `${folder}/weights`;
    const size = 5 * (1 << 19);
    const checkpoint = {
      config: {},
      files: [{ path, bytes: size }],
      tensors: new Map([["a", {
        ...{ dtype: "BF16", shape: [size / 2], begin: 0, end: size, path },
      }]]),
    } as unknown as Checkpoint;
    const digest = async (change: number, wholeBytes: number) => {
      const bytes = new Uint8Array(size);
      if (change >= 0) bytes[change] = 1;
      await Deno.writeFile(path, bytes);
      return await fingerprint(checkpoint, { wholeBytes });
    };
    const sampled = await digest(-1, size - 1);
    for (const at of [0, 4095, 1 << 20, 2 << 20, size - 4096, size - 1]) {
      assertNotEquals(await digest(at, size - 1), sampled, `byte ${at}`);
    }
    assertEquals(await digest(5000, size - 1), sampled);
    assertNotEquals(await digest(5000, size), await digest(-1, size));
  });
});

Deno.test("a failed save() leaves the old file whole", async () => {
  const folder = await Deno.makeTempDir();
  try {
    await using model = await loadModel(TINY);
    const cache = model.createCache();
    await model.forward([1, 2, 3], { cache });
    await assertRejects(
      () => cache.save(`${folder}/absent/x`),
      Deno.errors.NotFound,
    );
    await Deno.mkdir(`${folder}/taken`);
    await assertRejects(() => cache.save(`${folder}/taken`), Error);
    assertEquals(Array.from(Deno.readDirSync(folder)).length, 1);
    const saving = cache.save(`${folder}/x`);
    await assertRejects(() => cache.save(`${folder}/y`), CacheBusyError);
    await saving;
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("loadCache() answers every damaged file with a CacheFileError", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const path = `${folder}/saved.cache`;
    await using model = await loadModel(TINY);
    const cache = model.createCache();
    await model.forward(randomTokens(70, 320, 2), { cache });
    await cache.save(path);
    cache.dispose();
    const good = await Deno.readFile(path);
    const header = Number(new DataView(good.buffer).getBigUint64(0, true)) + 8;
    const random = new Random(7);
    const mutated = `${folder}/mutated.cache`;
    const rounds = 10_000;
    let loaded = 0;
    for (let i = 0; i < rounds; i++) {
      const bytes = good.slice();
      let length = bytes.length;
      // Most of what can go wrong is in the header.
      const end = i % 4 === 0 ? bytes.length : header;
      for (let n = random.integer(3); n >= 0; n--) {
        bytes[random.integer(end)] = random.integer(256);
      }
      if (i % 7 === 0) length = random.integer(bytes.length);
      await Deno.writeFile(mutated, bytes.subarray(0, length));
      try {
        const again = await model.loadCache(mutated);
        assertEquals(again.length, 70);
        again.dispose();
        loaded++;
      } catch (error) {
        assert(error instanceof CacheFileError, `${i}: ${error}`);
      }
    }
    // Bytes that were replaced by themselves, or in a place of no meaning.
    assert(loaded < rounds / 10, `${loaded} damaged files were loaded`);
    assertEquals(model.memory().caches, 0);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
