import { assert, assertEquals } from "@std/assert";
import { Ajv2020 } from "ajv/dist/2020.js";
import formats from "ajv-formats";
import {
  allowed,
  isAllowed,
  openNano,
  openV3,
  SCHEMAS,
  takes,
  walk,
} from "./support/grammar.ts";

const nano = await openNano();
const names = Object.keys(SCHEMAS);
const ajv = new Ajv2020({ strict: false, allErrors: true });
formats.default(ajv);
const validators = new Map(
  names.map((name) => [name, ajv.compile(SCHEMAS[name])]),
);

function check(name: string, text: string) {
  const validate = validators.get(name)!;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`${name} gave ${text}`, { cause: error });
  }
  assert(
    validate(value),
    `${name} gave ${text}: ${JSON.stringify(validate.errors)}`,
  );
}

Deno.test("random outputs parse and validate", () => {
  assert(names.length >= 40);
  for (let seed = 0; seed < 240; seed++) {
    const name = names[seed % names.length];
    check(name, walk(nano, { json: SCHEMAS[name] }, seed));
  }
});

Deno.test("random outputs in the vocabulary of V3 parse and validate", async () => {
  const v3 = await openV3();
  for (let seed = 0; seed < names.length; seed += 5) {
    const name = names[seed];
    check(name, walk(v3, { json: SCHEMAS[name] }, seed, undefined, 8));
  }
});

Deno.test("a token is accepted where its bit is set, and only there", () => {
  let checked = 0;
  for (let seed = 0; seed < names.length; seed += 2) {
    walk(nano, { json: SCHEMAS[names[seed]] }, seed, (state, mask, draw) => {
      const some = allowed(mask, nano.size);
      const ids = Array.from(
        { length: 24 },
        (_, i) =>
          i % 2 ? Math.floor(draw() * nano.size) : some[
            Math.floor(draw() * some.length)
          ],
      );
      for (const id of ids) {
        const accepted = state.accept(id);
        assertEquals(accepted, isAllowed(mask, id), `token ${id}`);
        if (accepted) state.rollback(1);
        checked++;
      }
    });
  }
  assert(checked > 5000);
});

Deno.test("what a schema allows is taken, what it forbids is not", () => {
  const cases: [string, string[], string[]][] = [
    [
      "person",
      ['{"name":"Ann","age":7}', '{"name": "李雷 🎉", "age": 150}'],
      [
        '{"age":7,"name":"Ann"}',
        '{"name":"","age":7}',
        '{"name":"Ann","age":151}',
        '{"name":"Ann","age":07}',
        '{"name":"Ann"}',
        '{"name":"Ann","age":7,"x":1}',
        '{"name":"Ann","age":7',
      ],
    ],
    [
      "short string",
      ['"abc"', '"🎉🎉🎉"', '"\\ud83c\\udf89ab"', '"\\u00e9\\n\\""', '""'],
      ['"abcd"', '"🎉🎉🎉🎉"', '"\\ud83c"', '"\\udf89"', '"\u0001"', '"a'],
    ],
    [
      "number",
      ["0", "-1.5e10", "3.25", "1E-5"],
      ["01", "1.", ".5", "+1", "1e", "1e999", "NaN"],
    ],
    [
      "optional members",
      ['{"b":true}', '{"a":1,"b":true}', '{"b":true, "c":null}'],
      [
        "{}",
        '{"a":1}',
        '{"b":true,}',
        '{"a":1 ,"b":true}',
        '{"c":null,"b":true}',
      ],
    ],
    [
      "other members",
      ['{"abc":1}', '{"a":true,"b":[]}', '{"":0}', "{}"],
      ['{"a":1}', '{"ab":1}', '{"\\u0061":1}', '{"x":1,"a":true}'],
    ],
    [
      "tuple",
      ['[1,"ab"]', '[1, "ab"]'],
      ["[]", "[1]", '[1,"ab",2]', '[1,"abc"]'],
    ],
    [
      "one of kinds",
      ['{"kind":"circle","radius":2.5}', '{"kind":"cube","side":3}'],
      ['{"kind":"circle","side":3}', '{"kind":"sphere"}'],
    ],
    [
      "date",
      ['"2024-02-29"', '"2000-02-29"', '"1999-12-31"'],
      ['"2023-02-29"', '"1900-02-29"', '"2024-04-31"', '"2024-13-01"'],
    ],
    [
      "list",
      ['{"value":1,"next":{"value":2,"next":null}}'],
      ['{"value":1,"next":{"value":2}}', '{"value":100,"next":null}'],
    ],
    ["typed enum", ['"a"', '"b"'], ["3", '"c"']],
    ["found pattern", ['"1"', '"é1y"', '"ax."'], ['"x.a"', '""', '"é"']],
    ["quoted pattern", ['"\\"\\\\"', '"é漢\\n"'], ['"a\\n"', '"é"']],
  ];
  for (const [name, right, wrong] of cases) {
    const grammar = { json: SCHEMAS[name] };
    for (const text of right) {
      check(name, text);
      assert(takes(nano, grammar, text), `${name} must take ${text}`);
    }
    for (const text of wrong) {
      assert(!takes(nano, grammar, text), `${name} must not take ${text}`);
    }
  }
});

Deno.test("integer bounds are exact", () => {
  const bounds: [number | undefined, number | undefined][] = [
    [0, 0],
    [-1, 1],
    [0, 150],
    [3, 17],
    [-200, -1],
    [-13, 99],
    [100, 109],
    [-105, 20],
    [7, undefined],
    [undefined, -7],
    [9, 10],
    [99, 101],
  ];
  for (const [minimum, maximum] of bounds) {
    for (const exclusive of [false, true]) {
      const [low, high] = exclusive
        ? ["exclusiveMinimum", "exclusiveMaximum"]
        : ["minimum", "maximum"];
      const wide = minimum === undefined || maximum === undefined ||
        maximum - minimum > 1;
      if (exclusive && !wide) continue;
      const json = { type: "integer", [low]: minimum, [high]: maximum };
      for (let value = -210; value <= 210; value++) {
        const [a, b] = [minimum ?? -Infinity, maximum ?? Infinity];
        const right = exclusive
          ? value > a && value < b
          : value >= a && value <= b;
        assertEquals(
          takes(nano, { json }, `${value}`),
          right,
          `${value} with ${JSON.stringify(json)}`,
        );
      }
      assert(!takes(nano, { json }, "-0"));
      assert(!takes(nano, { json }, "00"));
    }
  }
});

Deno.test("number bounds are exact", () => {
  const schemas = [
    { minimum: 0, maximum: 1 },
    { exclusiveMinimum: 0, exclusiveMaximum: 1 },
    { minimum: -1.25, maximum: 10.5 },
    { exclusiveMinimum: -1.25, maximum: -0.2 },
    { minimum: 0.1 },
    { exclusiveMaximum: 12.5 },
    { minimum: 9.99, maximum: 100.01 },
  ];
  const texts = [
    ..."0 1 2 9 10 11 12 13 99 100 101 -1 -2 -10".split(" "),
    ..."0.0 0.1 0.10 0.09 0.100001 1.0 1.000 1.000001 0.999999".split(" "),
    ..."-0.2 -0.20 -0.19 -0.200001 -1.25 -1.250 -1.3 -1.249999".split(" "),
    ..."10.5 10.50 10.51 12.5 12.49 12.500001 9.99 9.989999 9.9".split(" "),
    ..."100.01 100.010 100.02 100.0 0.000001 0.00001".split(" "),
  ];
  for (const bounds of schemas) {
    const json = { type: "number", ...bounds };
    const validate = ajv.compile(json);
    for (const text of texts) {
      assertEquals(
        takes(nano, { json }, text),
        validate(Number(text)),
        `${text} with ${JSON.stringify(json)}`,
      );
    }
  }
});
