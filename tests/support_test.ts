import { assert, assertEquals } from "@std/assert";
import {
  fromBf16,
  fromF16,
  fromF8,
  Random,
  relativeError,
  toBf16,
  toF16,
  toF8,
} from "./support/numbers.ts";

Deno.test("fromF16() and toF16() agree with Float16Array", () => {
  const bits = Uint16Array.from({ length: 0x7c00 }, (_, i) => i);
  const values = new Float16Array(bits.buffer);
  for (let i = 0; i < bits.length; i++) assertEquals(fromF16(i), values[i]);
  const random = new Random(3);
  for (let i = 0; i < 2000; i++) {
    const x = random.normal() * 10 ** (random.integer(10) - 7);
    assertEquals(fromF16(toF16(x)), new Float16Array([x])[0]);
  }
});

Deno.test("fromF8() has E4M3's landmarks, and toF8() inverts it", () => {
  assertEquals(fromF8(0x7e), 448);
  assertEquals(fromF8(0x38), 1);
  assertEquals(fromF8(0xc0), -2);
  assertEquals(fromF8(0x01), 2 ** -9);
  assert(Number.isNaN(fromF8(0x7f)));
  for (let bits = 0; bits < 256; bits++) {
    if ((bits & 0x7f) !== 0x7f) assertEquals(toF8(fromF8(bits)), bits);
  }
  assertEquals(fromF8(toF8(1.0625)), 1); // halfway: to even
  assertEquals(fromF8(toF8(1.1875)), 1.25);
  assertEquals(fromF8(toF8(1e9)), 448);
});

Deno.test("toBf16() rounds to the nearest, ties to even", () => {
  assertEquals(fromBf16(0x3f80), 1);
  assertEquals(toBf16(1 + 2 ** -8), 0x3f80);
  assertEquals(toBf16(1 + 3 * 2 ** -8), 0x3f82);
  assertEquals(toBf16(-1 - 2 ** -8 - 2 ** -20), 0xbf81);
});

Deno.test("relativeError() is relative to the second", () => {
  assertEquals(relativeError([3, 4], [3, 4]), 0);
  assertEquals(relativeError([3, 9], [3, 4]), 1);
  assertEquals(relativeError([1], [1, 2]), Infinity);
});
