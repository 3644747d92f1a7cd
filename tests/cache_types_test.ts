/** Caches of fp8, int8 and int6 under the whole API: sharing, rewinding, files, sizes. */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { CacheFileError, loadModel } from "../mod.ts";
import { inFolder } from "./support/folder.ts";
import { Random, relativeError } from "./support/numbers.ts";
import { openLibraries } from "./support/open_library.ts";
import { assertSameBits } from "./support/ops.ts";
import { slender } from "./support/slender.ts";

openLibraries();
const NANO = new URL("../models/nano/", import.meta.url);
const TYPES = ["fp8", "int8", "int6"] as const;

function randomTokens(count: number, seed: number) {
  const random = new Random(seed);
  return Array.from({ length: count }, () => random.integer(4096));
}

for (const type of TYPES) {
  Deno.test(`forks, rewound and saved caches go on with the same bits (${type})`, async () => {
    await using model = await loadModel(NANO);
    const cache = model.createCache({ type });
    assertEquals(cache.type, type);
    // Up-projected, then absorbed; a page is full, another in part.
    await model.forward(randomTokens(140, 1), { cache });
    await model.forward(randomTokens(10, 2), { cache });
    const held = cache.tokens;
    const go = async (with_: typeof cache) =>
      new Float32Array(await model.forward([5, 6, 7], { cache: with_ }));
    const fork = cache.fork(), early = cache.fork();
    const expected = await go(cache);
    assertSameBits(await go(fork), expected, "fork");
    cache.truncate(150);
    assertEquals(cache.tokens, held);
    assertSameBits(await go(cache), expected, "truncated");
    // What another fork writes to its copy of the last page is its own.
    early.truncate(145);
    await model.forward(randomTokens(40, 3), { cache: early });
    fork.truncate(150);
    assertSameBits(await go(fork), expected, "fork beside another");
    await inFolder(async (folder) => {
      const path = `${folder}/saved`;
      fork.truncate(150);
      await fork.save(path);
      await using other = await loadModel(NANO, { threads: 1 });
      const loaded = await other.loadCache(path);
      assertEquals([loaded.type, loaded.tokens], [type, held]);
      assertEquals(loaded.bytesPerToken, fork.bytesPerToken);
      const logits = await other.forward([5, 6, 7], { cache: loaded });
      assertSameBits(new Float32Array(logits), expected, "loaded");
      loaded.dispose();
    });
    for (const one of [cache, fork, early]) one.dispose();
    assertEquals(model.memory().caches, 0);
  });

  Deno.test(`logits of a cache of ${type} are near bf16's, and not equal`, async () => {
    await using model = await loadModel(NANO);
    const tokens = randomTokens(100, 4);
    const exact = await model.forward(tokens);
    const cache = model.createCache({ type });
    const error = relativeError(await model.forward(tokens, { cache }), exact);
    assert(error > 1e-5 && error < 0.2, `off by ${error}`);
    // generate() and score() take it, too.
    const { tokens: next } = await model.generate(cache.tokens, {
      cache,
      maxTokens: 3,
      ignoreEos: true,
      temperature: 0,
    }).result();
    assertEquals(cache.tokens, [...tokens, ...next]);
    const scored = await model.score([5, 6, 7], { cache });
    assert(scored.every((logprob) => Number.isFinite(logprob)));
  });

  Deno.test(`loadCache() refuses damaged files of ${type}`, async () => {
    await using model = await loadModel(NANO);
    await inFolder(async (folder) => {
      const path = `${folder}/saved`;
      const cache = model.createCache({ type });
      await model.forward(randomTokens(70, 5), { cache });
      await cache.save(path);
      cache.dispose();
      const good = await Deno.readFile(path);
      const refused = async (bytes: Uint8Array) => {
        await Deno.writeFile(path, bytes);
        await assertRejects(() => model.loadCache(path), CacheFileError);
      };
      const random = new Random(6);
      for (let i = 0; i < 200; i++) {
        const bytes = good.slice();
        bytes[bytes.length - 1 - random.integer(good.length >> 1)] ^= 1 <<
          random.integer(8);
        await refused(bytes);
      }
      for (const length of [0, 7, 100, good.length - 1]) {
        await refused(good.subarray(0, length));
      }
      // A file whose header names another type.
      const text = new TextDecoder("latin1").decode(good);
      const at = text.indexOf(`"type":"${type}"`) + 8;
      const wrong = good.slice();
      wrong.set(new TextEncoder().encode(type === "fp8" ? "f32" : "int4"), at);
      await refused(wrong);
      assertEquals(model.memory().caches, 0);
    });
  });
}

Deno.test("a token takes its elements and two scales of each layer", async () => {
  for (
    const [shape, eight, six] of [
      ["v2", 34_680, 26_040],
      ["v2-lite", 15_606, 11_718],
    ] as const
  ) {
    await using model = await slender(shape);
    for (
      const [type, bytes] of [["fp8", eight], ["int8", eight], [
        "int6",
        six,
      ]] as const
    ) {
      const cache = model.createCache({ type, capacity: 64 });
      assertEquals([type, cache.bytesPerToken], [type, bytes]);
      assertEquals(cache.bytes, 64 * bytes);
      cache.dispose();
    }
  }
});

for (const type of ["fp8", "int6"] as const) {
  Deno.test(`loadCache() refuses files of ${type} whose elements are in the earlier layout`, () =>
    inFolder(async (folder) => {
      await using model = await loadModel(NANO);
      const path = `${folder}/saved`;
      const cache = model.createCache({ type });
      await model.forward([1, 2, 3], { cache });
      await cache.save(path);
      cache.dispose();
      const text = new TextDecoder("latin1").decode(await Deno.readFile(path));
      // Then nothing followed the order; spaces make up for it, as the header's length is fixed.
      const old = text.replace(
        /("page,layer,token,latent\+rope)(:[^"]*)(",)/,
        (_, order, rest, end) => order + end + " ".repeat(rest.length),
      );
      assert(old !== text && old.length === text.length);
      await Deno.writeFile(
        path,
        Uint8Array.from(old, (letter) => letter.charCodeAt(0)),
      );
      await assertRejects(
        () => model.loadCache(path),
        CacheFileError,
        'layout is "page,layer,token,latent+rope", and must be',
      );
    }));
}

Deno.test("int6 is refused by name where a width is no multiple of 16", async () => {
  await using model = await slender("v2-lite", { qk_rope_head_dim: 8 });
  assertThrows(
    () => model.createCache({ type: "int6" }),
    RangeError,
    "multiples of 16 elements, and the model's have 512 and 8",
  );
  model.createCache({ type: "int8" }).dispose();
});

Deno.test("int6 is refused by name where the latent is too narrow", async () => {
  await using model = await slender("v2-lite", { kv_lora_rank: 112 });
  assertThrows(
    () => model.createCache({ type: "int6" }),
    RangeError,
    "at least twice the rotary key's width, and the model's have 112 and 64",
  );
  model.createCache({ type: "fp8" }).dispose();
});
