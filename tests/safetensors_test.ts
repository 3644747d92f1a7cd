import {
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { CheckpointError } from "../src/errors.ts";
import {
  parseSafetensorsHeader,
  readSafetensorsHeader,
} from "../src/weights/safetensors.ts";
import { checkpointFolder } from "./support/fixtures.ts";
import { safetensorsBytes } from "./support/safetensors.ts";

/** Parses a header as if `dataBytes` bytes followed. */
function parse(header: unknown, dataBytes: number) {
  const json = safetensorsBytes(header).subarray(8);
  return parseSafetensorsHeader(json, 8 + json.length + dataBytes, "x.st");
}

function refuses(header: unknown, dataBytes: number, ...words: string[]) {
  const error = assertThrows(() => parse(header, dataBytes), CheckpointError);
  for (const word of ["x.st", ...words]) {
    assertStringIncludes(error.message, word);
  }
}

const entry = (dtype: unknown, shape: unknown, data_offsets: unknown) => ({
  dtype,
  shape,
  data_offsets,
});

Deno.test("readSafetensorsHeader() gives absolute offsets", async () => {
  const path = `${checkpointFolder("tiny-lite").pathname}model.safetensors`;
  const header = await readSafetensorsHeader(path);
  assertEquals(header.path, path);
  assertEquals(header.fileBytes, 1328096);
  assertEquals(header.dataOffset, 9056);
  assertEquals(header.tensors.size, 83);
  assertEquals(header.metadata.get("format"), "pt");
  assertEquals(header.tensors.get("lm_head.weight"), {
    dtype: "F32",
    shape: [320, 64],
    begin: 9056 + 1237120,
    end: 9056 + 1319040,
  });
});

Deno.test("parseSafetensorsHeader() accepts scalars, empty tensors, none", () => {
  const { tensors } = parse({
    "z": entry("F32", [], [0, 4]),
    "a": entry("F32", [0, 7], [4, 4]),
    "m": entry("U8", [3], [4, 7]),
  }, 7);
  assertEquals([...tensors.keys()], ["z", "a", "m"]);
  assertEquals(tensors.get("a")?.begin, tensors.get("a")?.end);
  assertEquals(parse("{} ", 0).tensors.size, 0);
});

Deno.test("parseSafetensorsHeader() refuses what is not a JSON object", () => {
  refuses("[]", 0, "must be a JSON object");
  refuses("null", 0, "must be a JSON object");
  refuses("{", 0, "not JSON");
  refuses("", 0, "not JSON");
  refuses("\ufeff{}", 0, "not JSON");
  const bytes = new Uint8Array([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d]);
  assertThrows(
    () => parseSafetensorsHeader(bytes, 15, "x.st"),
    CheckpointError,
    "UTF-8",
  );
  refuses("[".repeat(200_000), 0, "not JSON");
  const deep = "[".repeat(100_000) + "]".repeat(100_000);
  refuses(`{"t":${deep}}`, 0, "tensor", "must be an object");
});

Deno.test("parseSafetensorsHeader() refuses bad types and shapes by name", () => {
  refuses({ t: 7 }, 0, '"t" is 7');
  refuses({ t: entry("F33", [1], [0, 4]) }, 4, '"t"', "F33", "F32");
  refuses({ t: entry("toString", [1], [0, 4]) }, 4, "toString");
  refuses({ t: entry(undefined, [1], [0, 4]) }, 4, "dtype is missing");
  refuses({ t: entry("F32", [-1], [0, 4]) }, 4, '"t"', "[-1]");
  refuses({ t: entry("F32", [0.5], [0, 2]) }, 2, "[0.5]");
  refuses({ t: entry("F32", ["1"], [0, 4]) }, 4, '["1"]');
  refuses({ t: entry("F32", 1, [0, 4]) }, 4, "shape is 1");
  refuses({ t: entry("F32", [2], [0, 4]) }, 4, "[2] of F32 takes 8", "hold 4");
  refuses({ t: entry("BF16", [2, 2], [0, 16]) }, 16, "takes 8", "hold 16");
  refuses({ t: entry("F32", [2 ** 52, 2 ** 52], [0, 4]) }, 4, '"t"', "takes");
  const huge = Array(40).fill(2 ** 53 - 1);
  refuses({ t: entry("U8", huge, [0, 4]) }, 4, '"t"', "takes");
  refuses({ t: entry("U8", [...huge, 0], [0, 0]) }, 0, '"t"');
});

Deno.test("parseSafetensorsHeader() refuses bad offsets by name", () => {
  const four = (offsets: unknown) => ({ t: entry("F32", [1], offsets) });
  refuses(four([-4, 0]), 4, '"t"', "[-4, 0]");
  refuses(four([0, 1e300]), 4, '"t"');
  refuses(four([0.5, 4.5]), 8, "[0.5, 4.5]");
  refuses(four([2 ** 53, 2 ** 53 + 4]), 4, '"t"');
  refuses(four([2 ** 53 - 8, 2 ** 53 - 4]), 4, '"t"', "truncated");
  refuses(four([0, 4]), 3, '"t"', "truncated");
  refuses(four([4, 0]), 4, "must ascend");
  refuses(four([0]), 4, "two integers");
  refuses(four([0, 4, 8]), 8, "two integers");
  refuses(four(undefined), 4, "missing");
});

Deno.test("parseSafetensorsHeader() refuses overlaps, holes and loose bytes", () => {
  const one = entry("F32", [1], [0, 4]);
  refuses({ a: one, b: entry("F32", [1], [2, 6]) }, 6, "overlaps", '"b"');
  refuses({ a: one, b: one }, 4, "overlaps", '"a"', '"b"');
  refuses({ a: one, b: entry("F32", [1], [6, 10]) }, 10, "hole", '"b"');
  refuses({ b: entry("F32", [1], [4, 8]) }, 8, "hole", "the header");
  refuses({ a: one }, 5, "tensors end");
  refuses({}, 1, "tensors end");
});

Deno.test("parseSafetensorsHeader() refuses a bad __metadata__", () => {
  refuses({ __metadata__: 1 }, 0, "__metadata__");
  refuses({ __metadata__: { a: 1 } }, 0, "__metadata__");
});

Deno.test("readSafetensorsHeader() refuses damaged files", async () => {
  const folder = await Deno.makeTempDir();
  const path = `${folder}/model.safetensors`;
  const refusesFile = async (bytes: Uint8Array, word: string) => {
    await Deno.writeFile(path, bytes);
    const error = await assertRejects(
      () => readSafetensorsHeader(path),
      CheckpointError,
      word,
    );
    assertStringIncludes(error.message, path);
  };
  const withLength = (length: bigint) => {
    const bytes = new Uint8Array(64);
    new DataView(bytes.buffer).setBigUint64(0, length, true);
    return bytes;
  };
  try {
    await refusesFile(new Uint8Array(), "truncated: 0 bytes");
    await refusesFile(new Uint8Array(7), "truncated: 7 bytes");
    await refusesFile(withLength(57n), "truncated: the header takes 57");
    await refusesFile(withLength(100_000_001n), "at most 100000000");
    await refusesFile(withLength(2n ** 64n - 1n), "18446744073709551615");
    await refusesFile(withLength(0n), "not JSON");
    const whole = safetensorsBytes(
      { t: entry("F32", [4], [0, 16]) },
      new Uint8Array(16),
    );
    await refusesFile(whole.subarray(0, -1), "truncated");
    await Deno.writeFile(path, whole);
    assertEquals((await readSafetensorsHeader(path)).tensors.size, 1);
    await assertRejects(
      () => readSafetensorsHeader(folder),
      CheckpointError,
      "not a file",
    );
    await assertRejects(
      () => readSafetensorsHeader(`${folder}/absent`),
      Deno.errors.NotFound,
    );
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
