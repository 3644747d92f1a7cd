import { assert, assertStringIncludes, assertThrows } from "@std/assert";
import { checkGrammar } from "../src/grammar/grammar.ts";
import { openNano } from "./support/grammar.ts";

const { compiler } = await openNano();

function refuses(grammar: unknown, ...words: string[]) {
  const error = assertThrows(
    () => compiler.compile(grammar as { json: object }),
    TypeError,
  );
  assertStringIncludes(error.message, "Cannot generate: grammar");
  for (const word of words) assertStringIncludes(error.message, word);
}

Deno.test("compile() refuses what is no grammar", () => {
  refuses(null, "object");
  refuses("a", "object");
  refuses([], "object");
  refuses({}, "exactly one");
  refuses({ json: {}, regex: "a" }, "exactly one");
  refuses({ regexp: "a" }, "json, regex, choices, ebnf");
  refuses({ json: true }, "grammar.json must be");
  refuses({ json: [] }, "grammar.json must be");
  refuses({ regex: 1 }, "grammar.regex must be a string");
  refuses({ ebnf: 1 }, "grammar.ebnf must be a string");
  refuses({ choices: "a" }, "grammar.choices must be");
  refuses({ choices: [] }, "grammar.choices must be");
  refuses({ choices: ["a", 1] }, "grammar.choices[1]");
  refuses({ choices: ["\ud800"] }, "grammar.choices[0]");
  refuses({ regex: "a".repeat(2 ** 21) }, "characters long");
  compiler.compile({ json: {}, regex: undefined } as { json: object });
});

Deno.test("compile() refuses keywords of JSON schema by name and place", () => {
  const at = (n: object) => ({ json: { type: "object", properties: { n } } });
  const place = "at /properties/n";
  const exact = assertThrows(
    () => checkGrammar(at({ type: "integer", multipleOf: 2 })),
    TypeError,
  );
  assert(
    exact.message === "Cannot generate: grammar.json uses multipleOf at " +
        "/properties/n, which cannot be enforced",
    exact.message,
  );
  for (
    const keyword of [
      "not",
      "if",
      "then",
      "else",
      "contains",
      "uniqueItems",
      "patternProperties",
      "propertyNames",
      "minProperties",
      "maxProperties",
      "dependentRequired",
      "dependentSchemas",
      "unevaluatedProperties",
      "unevaluatedItems",
      "multipleOf",
      "$dynamicRef",
      "$anchor",
      "$id",
      "nullable",
      "madeUp",
    ]
  ) {
    refuses(at({ [keyword]: {} }), `uses ${keyword} ${place}`);
  }
  refuses({ json: { not: {} } }, "uses not at the top");
  refuses(at({ format: "uri" }), 'the format "uri"', place);
  refuses(at({ pattern: "a", maxLength: 3 }), "maxLength beside pattern");
  refuses(at({ format: "date", minLength: 3 }), "minLength beside format");
  refuses(at({ pattern: "a", format: "date" }), "format beside pattern");
  refuses(at({ pattern: "(?=a)" }), place, "looking around");
  refuses(at({ pattern: "(" }), place, "no regular expression");
  refuses(at({ allOf: [{}, {}] }), "allOf of several");
  refuses(at({ enum: [1], minimum: 1 }), "minimum beside enum");
  refuses(at({ const: 1, enum: [1] }), "beside");
  refuses(at({ anyOf: [{}], properties: {} }), "properties beside anyOf");
  refuses(at({ $ref: "#", type: "object" }), "type beside $ref");
  refuses(at({ $ref: "#/x/y" }), "leads nowhere");
  refuses(at({ $ref: "#/__proto__" }), "leads nowhere");
  refuses(at({ $ref: "https://example.org/x" }), "not within the schema");
  refuses(at({ items: [{}] }), "prefixItems");
  refuses(at({ type: "text" }), "wrong type", place);
  refuses(at({ type: [] }), "wrong type");
  refuses(at({ minimum: "1" }), "wrong minimum");
  refuses(at({ minimum: 1, exclusiveMinimum: true }), "exclusiveMinimum");
  refuses(at({ minLength: -1 }), "wrong minLength");
  refuses(at({ minLength: 3, maxLength: 2 }), "minLength");
  refuses(at({ enum: [] }), "wrong enum");
  refuses(at({ required: "a" }), "wrong required");
  refuses(at({ properties: [] }), "wrong properties");
  refuses(at({ anyOf: {} }), "wrong anyOf");
  refuses({ json: { properties: { n: 3 } } }, "no schema", place);
  refuses(at({ type: "integer", minimum: 3, maximum: 2 }), "bounds", place);
  refuses(at({ type: "integer", minimum: 1e30 }), "bounds");
  refuses(
    at({ type: "integer", exclusiveMinimum: 2 ** 53 }),
    "the exclusiveMinimum",
  );
  refuses(at({ type: "number", minimum: 1e-20 }), "digits after the point");
  refuses({
    json: { properties: { "a/b~c": { not: {} } } },
  }, "at /properties/a~1b~0c");
});

Deno.test("compile() refuses oneOf whose schemas may hold together", () => {
  const one = (...oneOf: object[]) => ({ json: { oneOf } });
  refuses(one({ type: "integer" }, { type: "number" }), "schemas 0 and 1");
  refuses(one({ type: "string" }, { enum: ["a"] }), "schemas 0 and 1");
  refuses(one({ const: 1 }, { const: 2 }, { const: 1 }), "schemas 0 and 2");
  refuses(one({ minLength: 1 }, { minimum: 1 }), "schemas");
  const kind = (value: string, ...required: string[]) => ({
    type: "object",
    properties: { kind: { const: value } },
    required,
  });
  refuses(one(kind("a"), kind("b")), "schemas 0 and 1");
  refuses(one(kind("a", "kind"), kind("a", "kind")), "schemas 0 and 1");
  compiler.compile(one(kind("a", "kind"), kind("b")));
});

Deno.test("compile() refuses a schema that nothing satisfies", () => {
  const self = { $ref: "#/$defs/a", $defs: { a: { $ref: "#/$defs/a" } } };
  refuses({ json: self }, "any text");
  refuses({
    json: { type: "object", properties: { a: { $ref: "#" } }, required: ["a"] },
  }, "any text");
  refuses({ json: { anyOf: [{ $ref: "#" }, { type: "null" }] } }, "the top");
  refuses({ json: { enum: [1], type: "string" } }, "any text");
  refuses({
    json: { type: "array", items: false, minItems: 1 },
  }, "any text");
  refuses({ regex: "[^\\s\\S]" }, "any text");
});

Deno.test("compile() refuses what regular expressions cannot be enforced", () => {
  for (
    const [regex, word] of [
      ["a(?=b)", "looking around"],
      ["(?<!a)b", "looking around"],
      ["(a)\\1", "a reference to a group"],
      ["(?<x>a)\\k<x>", "a reference to a group"],
      ["\\bword", "word boundary"],
      ["\\p{L}+", "\\p{}"],
      ["(?i:a)", "flags"],
      ["a^b", "anchor in the middle"],
      ["(a$)b", "anchor in the middle"],
      ["\\ud800", "surrogate"],
      ["\ud800", "surrogate"],
      ["a{3,2}", "no regular expression"],
      ["[b-a]", "no regular expression"],
      ["(", "no regular expression"],
      ["(?:a{1000}){1000}", "states"],
    ]
  ) refuses({ regex }, "grammar.regex", word);
});

Deno.test("compile() refuses hostile grammars in bounded time", () => {
  const deep = (levels: number, within: (schema: object) => object) => {
    let schema: object = {};
    for (let i = 0; i < levels; i++) schema = within(schema);
    return schema;
  };
  const items = (schema: object) => ({ items: schema });
  const member = (schema: object) => ({ properties: { a: schema } });
  const branch = (schema: object) => ({ anyOf: [schema] });
  const circular: { items?: object } = {};
  circular.items = circular;
  const doubling: Record<string, object> = { d0: { type: "null" } };
  for (let i = 1; i < 40; i++) {
    const item = { $ref: `#/$defs/d${i - 1}` };
    doubling[`d${i}`] = { prefixItems: [item, item], minItems: 2 };
  }
  const wide = Object.fromEntries(
    Array.from({ length: 30_000 }, (_, i) => [`p${i}`, {}]),
  );
  const some = Object.fromEntries(
    Array.from({ length: 500 }, (_, i) => [`property ${i}`, {}]),
  );
  const many = (min: number, max: number) => ({
    type: "array",
    items: { type: "string", minLength: min, maxLength: max },
    minItems: min,
    maxItems: max,
  });
  const cases: [unknown, string | undefined][] = [
    [{ json: deep(99, member) }, undefined],
    [{ json: deep(200, member) }, "deep"],
    [{ json: deep(200, branch) }, "deep"],
    [{ json: deep(1000, items) }, undefined],
    [{ json: deep(50_000, items) }, "more than"],
    [{ json: circular }, "itself"],
    [{ json: { properties: wide } }, "more than"],
    [{ json: { $ref: "#/$defs/d39", $defs: doubling } }, undefined],
    [{ json: { type: "string", maxLength: 1e6 } }, "states"],
    [{ json: { type: "string", maxLength: 2 ** 31 } }, undefined],
    [{ json: many(0, 10_000) }, undefined],
    [{ json: { properties: some, additionalProperties: true } }, undefined],
    [{ json: { type: "string", pattern: "^[^a]{5000}$" } }, undefined],
    [{ regex: "((a{1,99}){1,99}){1,99}" }, "states"],
    [{ regex: "(".repeat(300) + "a" + ")".repeat(300) }, "groups"],
    [{ regex: "(((a*)*)*)*" }, undefined],
    [{ regex: "(a?){900}" }, undefined],
    [{ regex: "(a?){9000}" }, "ways"],
    [{ choices: Array.from({ length: 50_000 }, (_, i) => `c${i}`) }, undefined],
    [{ choices: ["a".repeat(900_000)] }, "states"],
  ];
  const mask = new Int32Array(compiler.maskWords);
  for (const [grammar, word] of cases) {
    const began = performance.now();
    if (word) refuses(grammar, word);
    else {
      const state = compiler.compile(grammar as { json: object }).start();
      state.mask(mask);
    }
    const took = performance.now() - began;
    const name = JSON.stringify(word) + String(Object.keys(grammar as object));
    assert(took < 10_000, `${name} took ${took} ms`);
  }
});
