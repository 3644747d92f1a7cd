import { assert, assertEquals } from "@std/assert";
import { CharSet } from "../src/grammar/char_set.ts";
import { openNano, random, takes, walk } from "./support/grammar.ts";

const nano = await openNano();

const REGEXES = [
  "abc",
  "a|bc|",
  "^a|b$",
  "(?:ab)*c+d?",
  "a{2,4}b{3}c{2,}",
  "[a-c]x[^a-y]",
  ".",
  "..",
  "[^]",
  "\\d+\\.\\d{1,2}",
  "\\w+@\\w+",
  "\\s\\S\\D\\W",
  "[\\d\\-x]+",
  "[à-ü漢-龠🎉-🎋]{1,3}",
  "[^é\\n]{2}",
  "\\u00e9|\\u{1f389}|\\ud83c\\udf88|\\x41|\\cA|\\t\\n\\0",
  "(?<year>[12][0-9]{3})-(?:0[1-9]|1[0-2])",
  "a??b*?",
  "(a|b)*a(a|b){3}",
  "((a*)*b?)*",
  "[\\]\\\\^]",
  "\\/\\.\\*\\(",
];

Deno.test("outputs of a regular expression match it as a whole", () => {
  for (const regex of REGEXES) {
    const whole = new RegExp(`^(?:${regex})$`, "u");
    for (let seed = 0; seed < 8; seed++) {
      const text = walk(nano, { regex }, seed, undefined, 6);
      assert(whole.test(text), `${regex} gave ${JSON.stringify(text)}`);
    }
  }
});

Deno.test("a regular expression takes what RegExp matches, and nothing else", () => {
  const alphabet = [..."abcdxyz019-_.@ \n\té漢龥🎉🎈A/*(]\\^"];
  const draw = random(7);
  let matched = 0;
  for (const regex of REGEXES) {
    const whole = new RegExp(`^(?:${regex})$`, "u");
    const known = Array.from(
      { length: 8 },
      (_, seed) => walk(nano, { regex }, 100 + seed, undefined, 4),
    );
    for (let i = 0; i < 200; i++) {
      const pick = () => alphabet[Math.floor(draw() * alphabet.length)];
      let text = Array.from({ length: Math.floor(draw() * 5) }, pick).join("");
      if (i % 2) {
        // Something like a match, with one character exchanged or added.
        const chars = [...known[i % known.length]];
        const at = Math.floor(draw() * (chars.length + 1));
        chars.splice(at, i % 4 === 1 ? 1 : 0, ...(i % 8 > 5 ? [] : [pick()]));
        text = chars.join("");
      }
      const right = whole.test(text);
      if (right) matched++;
      assertEquals(
        takes(nano, { regex }, text),
        right,
        `${regex} and ${JSON.stringify(text)}`,
      );
    }
  }
  assert(matched > 200, `${matched}`);
});

Deno.test("choices are literal", () => {
  const choices = ["yes", "no", "yes, but", "", 'a"\\n.*', "日本🎉", "no"];
  const found = new Set<string>();
  for (let seed = 0; seed < 60; seed++) {
    found.add(walk(nano, { choices }, seed));
  }
  assertEquals(found, new Set(choices));
  for (const text of ["ye", "yes,", "no!", "yes, but ", "日", "a"]) {
    assert(!takes(nano, { choices }, text), text);
  }
  assertEquals(walk(nano, { choices: [""] }, 1), "");
});

Deno.test("CharSet.toExpr() is exactly the UTF-8 of its characters", () => {
  const edges = [0, 0x7f, 0x80, 0x7ff, 0x800, 0xfff, 0x1000, 0xd7ff, 0xe000];
  const points = [...edges, 0xffff, 0x10000, 0x3ffff, 0x40000, 0x10ffff, 0x9f7]
    .sort((a, b) => a - b);
  const encoder = new TextEncoder();
  for (const low of points) {
    for (const high of points) {
      if (low > high) continue;
      const expr = CharSet.of([low, high]).toExpr();
      const ways = expr.kind === "either" ? expr.items : [expr];
      const has = (point: number) => {
        const bytes = encoder.encode(String.fromCodePoint(point));
        return ways.some((way) => {
          const items = way.kind === "sequence" ? way.items : [way];
          return items.length === bytes.length &&
            items.every((item, i) =>
              item.kind === "byte" &&
              item.ranges.some(([from, to]) =>
                bytes[i] >= from && bytes[i] <= to
              )
            );
        });
      };
      for (const point of points) {
        for (const near of [point - 1, point, point + 1]) {
          const isChar = near >= 0 && near <= 0x10ffff &&
            !(near >= 0xd800 && near <= 0xdfff);
          if (!isChar) continue;
          assertEquals(has(near), near >= low && near <= high);
        }
      }
      // As many byte strings as characters: nothing malformed is among them.
      let count = 0;
      for (const way of ways) {
        const items = way.kind === "sequence" ? way.items : [way];
        count += items.reduce(
          (product, item) =>
            product *
            (item.kind === "byte"
              ? item.ranges.reduce((sum, [a, b]) => sum + b - a + 1, 0)
              : 0),
          1,
        );
      }
      const surrogates = low < 0xd800 && high > 0xdfff ? 0x800 : 0;
      assertEquals(count, high - low + 1 - surrogates);
    }
  }
});
