import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { incompleteTail } from "../src/text/byte_table.ts";
import { TextStream } from "../src/text/stream.ts";
import { Tokenizer } from "../src/text/tokenizer.ts";

const NANO = new URL("../models/nano/", import.meta.url);
const nano = (await Tokenizer.open(NANO, { vocabSize: 4096 }))!;
const plain = { addSpecialTokens: false };

Deno.test("TextStream.push() gives whole characters only", () => {
  // Nano writes each byte of these characters as a token of its own.
  const ids = nano.encode("a🦊你", plain);
  assertEquals(ids.length, 8);
  const stream = new TextStream(nano);
  const pieces = ids.map((id) => stream.push(id));
  assertEquals(pieces, ["a", "", "", "", "🦊", "", "", "你"]);
  assertEquals(stream.flush(), "");
});

Deno.test("TextStream.flush() shows an unfinished character as U+FFFD", () => {
  const ids = nano.encode("a🦊", plain).slice(0, 3);
  const stream = new TextStream(nano);
  assertEquals(ids.map((id) => stream.push(id)), ["a", "", ""]);
  assertEquals(stream.flush(), "\ufffd");
  assertEquals(stream.flush(), "");
  assertEquals(nano.decode(ids), "a\ufffd");
  assertEquals(nano.pieces(ids), ["a", "", "\ufffd"]);
  assertEquals(nano.pieces([]), []);
});

Deno.test("TextStream keeps a byte order mark", () => {
  const ids = nano.encode("\ufeffa\ufeff", plain);
  assertEquals(nano.decode(ids), "\ufeffa\ufeff");
  assertEquals(nano.pieces(ids).join(""), "\ufeffa\ufeff");
});

Deno.test("TextStream skips special tokens when asked, also inside a character", () => {
  const [a, b, c] = nano.encode("你", plain);
  const stream = new TextStream(nano, { skipSpecialTokens: true });
  assertEquals([0, a, b, 1, c, 1].map((id) => stream.push(id)).join(""), "你");
  const all = new TextStream(nano);
  assertEquals(all.push(1), "<｜end▁of▁sentence｜>");
});

Deno.test("TextStream.push() throws for an id outside the vocabulary", () => {
  const stream = new TextStream(nano);
  for (const id of [4096, -1, 0.5, NaN]) {
    assertThrows(() => stream.push(id), RangeError, `id ${id}`);
  }
});

Deno.test("TextStream agrees with decode() on any ids", () => {
  // Ids 2 to 257 are the single bytes: they make every kind of broken UTF-8.
  const id = fc.oneof(fc.integer({ min: 2, max: 257 }), fc.nat(4095));
  fc.assert(
    fc.property(fc.array(id, { maxLength: 40 }), fc.boolean(), (ids, skip) => {
      const stream = new TextStream(nano, { skipSpecialTokens: skip });
      let text = "";
      for (const id of ids) {
        text += stream.push(id);
      }
      text += stream.flush();
      assertEquals(text, nano.decode(ids, { skipSpecialTokens: skip }));
    }),
    { numRuns: 1000 },
  );
});

Deno.test("incompleteTail() agrees with the platform's streaming decoder", () => {
  const byte = fc.oneof(
    fc.integer({ min: 0, max: 255 }),
    fc.constantFrom(0x80, 0x9f, 0xa0, 0xbf, 0xc2, 0xe0, 0xed, 0xf0, 0xf4),
  );
  fc.assert(
    fc.property(fc.array(byte), (list) => {
      const bytes = new Uint8Array(list);
      // A decoder that is told of more to come gives all but the tail.
      const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
      const given = decoder.decode(bytes, { stream: true });
      const whole = bytes.subarray(0, bytes.length - incompleteTail(bytes));
      assertEquals(
        new TextDecoder("utf-8", { ignoreBOM: true }).decode(whole),
        given,
      );
    }),
    { numRuns: 2000 },
  );
});
