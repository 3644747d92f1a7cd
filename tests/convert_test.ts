/** Conversions of weights: to the formats of `moela_weight_desc`, exactly, and how well. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { convertMatrix, matrixBytes, type WeightDType } from "../ffi/mod.ts";
import { NativeError } from "../mod.ts";
import { parseConfig } from "../src/model/config.ts";
import { projectionType, running } from "../src/weights/bind.ts";
import { expectedTensors } from "../src/weights/expect.ts";
import { shapeConfig } from "../bench/shapes.ts";
import { openLibraries } from "./support/open_library.ts";
import { fromBf16, fromF8, toBf16, toF16, toF8 } from "./support/numbers.ts";
import { type Floats, normals } from "./support/ops.ts";

openLibraries();

const NONE = new Uint8Array();
const bytesOf = (x: { buffer: ArrayBuffer }) => new Uint8Array(x.buffer);

const convert = (x: Floats, dtype: WeightDType, rows: number, cols: number) =>
  convertMatrix({ data: bytesOf(x), scales: NONE }, "f32", dtype, rows, cols);

/** The values of a converted matrix. */
async function values(
  matrix: Awaited<ReturnType<typeof convert>>,
  dtype: WeightDType,
  rows: number,
  cols: number,
): Promise<Floats> {
  const { data } = await convertMatrix(matrix, dtype, "f32", rows, cols);
  return new Float32Array(data.buffer);
}

const SHAPES = [[1, 1], [3, 64], [5, 100], [130, 130], [2, 515]] as const;

Deno.test("convertMatrix() to int8 rounds each group to 127 steps a side", async () => {
  for (const [rows, cols] of SHAPES) {
    const x = normals(rows * cols, cols);
    // A group of zeros.
    x.fill(0, 0, Math.min(cols, 128));
    const { data, scales } = await convert(x, "int8", rows, cols);
    const q = new Int8Array(data.buffer);
    const halves = new Uint16Array(scales.buffer);
    const groups = Math.ceil(cols / 128);
    for (let row = 0; row < rows; row++) {
      for (let g = 0; g < groups; g++) {
        const begin = row * cols + g * 128;
        const group = x.subarray(
          begin,
          row * cols + Math.min((g + 1) * 128, cols),
        );
        const max = group.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
        const scale = fromBf16(halves[row * groups + g]);
        assertEquals(scale, fromBf16(toBf16(Math.fround(max / 127))));
        group.forEach((v, i) => {
          const exact = scale === 0 ? 0 : v / scale;
          const cut = Math.max(-127, Math.min(127, exact));
          assert(Math.abs(q[begin + i] - cut) <= 0.5 + 1e-4, `${v} ${scale}`);
        });
      }
    }
  }
});

Deno.test("convertMatrix() to fp8 rounds to the nearest E4M3, blocks of 128 x 128 scaled by powers of two", async () => {
  for (const [rows, cols] of SHAPES) {
    const x = normals(rows * cols, cols);
    const { data, scales } = await convert(x, "fp8", rows, cols);
    const across = Math.ceil(cols / 128);
    const found = new Float32Array(scales.buffer);
    const largest = new Float32Array(found.length);
    const block = (i: number) =>
      Math.floor(i / cols / 128) * across + Math.floor(i % cols / 128);
    x.forEach((v, i) => {
      largest[block(i)] = Math.max(largest[block(i)], Math.abs(v));
    });
    assertEquals(
      found,
      largest.map((max) => 2 ** Math.ceil(Math.log2(max / 448))),
    );
    x.forEach((v, i) => {
      const inverse = Math.fround(1 / found[block(i)]);
      assertEquals(data[i], toF8(Math.fround(v * inverse)), `${v}`);
    });
    const back = await values({ data, scales }, "fp8", rows, cols);
    back.forEach((v, i) =>
      assertEquals(v, Math.fround(fromF8(data[i]) * found[block(i)]))
    );
  }
});

Deno.test("convertMatrix() to fp8 takes every magnitude", async () => {
  const exponents = Array.from({ length: 40 }, (_, i) => 2 ** (i - 24));
  const x = Float32Array.from([
    448,
    ...exponents.flatMap((e) => [e, -1.25 * e, 1.0625 * e, 1.1875 * e]),
  ].filter((v) => Math.abs(v) <= 448));
  const row = new Float32Array(256);
  row.set(x);
  const { data } = await convert(row, "fp8", 1, 256);
  // The first block's scale is 1.
  row.subarray(0, 128).forEach((v, i) =>
    assertEquals(data[i], toF8(v), `${v}`)
  );
});

Deno.test("convertMatrix() to int4 errs less than the nearest of 16 steps", async () => {
  for (const [rows, cols] of [[8, 512], [3, 100], [1, 1]]) {
    const x = normals(rows * cols, 5);
    const int4 = await convert(x, "int4", rows, cols);
    assertEquals(int4.data.length, rows * 32 * Math.ceil(cols / 64));
    const back = await values(int4, "int4", rows, cols);
    let error = 0, plain = 0;
    for (let row = 0; row < rows; row++) {
      for (let begin = 0; begin < cols; begin += 32) {
        const at = row * cols + begin;
        const end = row * cols + Math.min(begin + 32, cols);
        const block = x.subarray(at, end);
        const max = block.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
        const step = max / 7.5;
        block.forEach((v, i) => {
          const q = Math.max(-8, Math.min(7, Math.round(v / step)));
          plain += (v - q * step) ** 2;
          error += (v - back[at + i]) ** 2;
        });
      }
    }
    assert(error <= (cols === 1 ? 1e-4 : plain), `${error} and ${plain}`);
  }
});

Deno.test("convertMatrix() to int4 fills what lies beyond the columns with zeros", async () => {
  const { data, scales } = await convert(normals(200, 1), "int4", 2, 100);
  assertEquals(data.length, 2 * 64);
  for (const row of [0, 1]) {
    for (let col = 100; col < 128; col++) {
      const byte = data[row * 64 + 32 + col % 32];
      assertEquals(col % 64 < 32 ? byte & 15 : byte >> 4, 8);
    }
  }
  assertEquals(scales.length, 2 * 4);
});

Deno.test("convertMatrix() takes bf16 and f16 as the numbers that they are", async () => {
  const rows = 3, cols = 200;
  const x = normals(rows * cols, 3);
  for (const stored of ["bf16", "f16"] as const) {
    const halves = Uint16Array.from(x, stored === "bf16" ? toBf16 : toF16);
    const from = { data: bytesOf(halves), scales: NONE };
    const wide = new Float32Array(
      (await convertMatrix(from, stored, "f32", rows, cols)).data.buffer,
    );
    for (const dtype of ["fp8", "int8", "int4", "bf16"] as const) {
      assertEquals(
        await convertMatrix(from, stored, dtype, rows, cols),
        await convert(wide, dtype, rows, cols),
      );
    }
  }
});

Deno.test("convertMatrix() gives the same bytes in pieces of 128 rows", async () => {
  const rows = 300, cols = 130;
  const x = normals(rows * cols, 4);
  for (const dtype of ["fp8", "int8", "int4"] as const) {
    const whole = await convert(x, dtype, rows, cols);
    let data = 0, scales = 0;
    for (const [begin, end] of [[0, 128], [128, 300]]) {
      const part = x.slice(begin * cols, end * cols);
      const piece = await convert(part, dtype, end - begin, cols);
      assertEquals(
        piece.data,
        whole.data.slice(data, data += piece.data.length),
      );
      assertEquals(
        piece.scales,
        whole.scales.slice(scales, scales += piece.scales.length),
      );
    }
    assertEquals([data, scales], [whole.data.length, whole.scales.length]);
  }
});

Deno.test("convertMatrix() keeps what is not finite from spreading", async () => {
  for (const dtype of ["fp8", "int8", "int4"] as const) {
    const x = normals(2 * 256, 1);
    x[3] = Infinity;
    x[4] = NaN;
    const matrix = await convert(x, dtype, 2, 256);
    const back = await values(matrix, dtype, 2, 256);
    const second = back.subarray(256 + 128);
    assert(second.every(Number.isFinite), dtype);
  }
});

Deno.test("convertMatrix() refuses bytes that do not fit", async () => {
  await assertRejects(
    () =>
      convertMatrix(
        { data: new Uint8Array(7), scales: NONE },
        "f32",
        "int8",
        1,
        2,
      ),
    NativeError,
    "bytes do not fit the shape",
  );
});

Deno.test("int8 and int4 of V2-Lite take at most 8.5 and 4.5 bits a weight that a token reads", () => {
  const config = parseConfig(shapeConfig("v2-lite"), "v2-lite");
  const { num_experts_per_tok: k } = config;
  for (const [weights, most] of [["int8", 8.5], ["int4", 4.5]] as const) {
    let bits = 0, read = 0;
    for (const { name, shape, scaled } of expectedTensors(config)) {
      // A token reads one row of the embedding, and k experts of each layer.
      const expert = Number(/\.experts\.(\d+)\./.exec(name)?.[1] ?? 0);
      if (name === "model.embed_tokens.weight" || expert >= k) continue;
      const [rows, cols] = shape.length === 1 ? [1, shape[0]] : shape;
      const wanted = projectionType(name, weights, "bf16");
      const plain = name.includes(".mlp.gate.") ? "f32" : "bf16";
      const dtype = scaled.length > 0 ? running("bf16", wanted) : plain;
      const { data, scales } = matrixBytes(dtype, rows, cols);
      bits += 8 * (data + scales);
      read += rows * cols;
    }
    assert(bits / read <= most, `${weights}: ${bits / read} bits`);
    assert(bits / read > most - 0.5, `${weights}: ${bits / read} bits`);
  }
});
