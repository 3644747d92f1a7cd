/** Wrong arguments of generate(), forward(), score() and caches, at the call or as a rejection. */
import { assertEquals } from "@std/assert";
import { loadModel } from "../mod.ts";
import {
  integer,
  number,
  type Option,
  refuses,
  valuesBut,
} from "./support/arguments.ts";
import { openLibraries } from "./support/open_library.ts";

openLibraries();

const NANO = new URL("../models/nano/", import.meta.url);

const GENERATE: Record<string, Option> = {
  maxTokens: integer([-1], [0, 1, 2 ** 40]),
  minTokens: integer([-1], [0, 1]),
  temperature: number([-1e-9], [0, 1e-30, 2]),
  topK: integer([-1], [0, 1, 4096, 100000]),
  topP: number([0, -0, 1.0001], [1e-30, 1]),
  minP: number([-0.1, 1.1], [0, 1]),
  typicalP: number([0, 1.1], [1e-30, 1]),
  repetitionPenalty: number([0, -1], [0.5, 1, 2]),
  presencePenalty: number([], [-2, 0, 2]),
  frequencyPenalty: number([], [-2, 0, 2]),
  seed: integer([-1, 2 ** 53], [0, 2 ** 53 - 1]),
  logprobs: integer([-1, 4097], [0, 5]),
  logitBias: {
    kinds: ["object"],
    bad: [{ a: 1 }, { 4096: 1 }, { "-1": 1 }, { 1.5: 1 }, { 1: NaN }, {
      1: Infinity,
    }],
    good: [{}, { 5: -Infinity, 4095: 3 }],
  },
  stop: {
    kinds: ["string", "array"],
    bad: ["", [""], ["a", ""]],
    good: ["xyz", [], ["x", "yz"]],
  },
  stopTokens: {
    kinds: ["array"],
    bad: [[-1], [4096], [0.5], [NaN]],
    good: [[], [5, 4095]],
  },
  ignoreEos: { kinds: ["boolean"], bad: [], good: [true, false] },
  reusePrefix: { kinds: ["boolean"], bad: [], good: [true, false] },
  // Whatever a grammar cannot be, or that cannot be enforced, is a TypeError.
  grammar: { kinds: [], bad: [], good: [{ regex: "a+" }] },
  cache: { kinds: [], bad: [], good: [] },
  signal: { kinds: [], bad: [], good: [new AbortController().signal] },
};

Deno.test("generate() refuses every option of a wrong type or value at the call", async () => {
  await using model = await loadModel(NANO);
  const generate = (name: string, value: unknown) => () =>
    model.generate([1, 5], { maxTokens: 1, [name]: value } as object);
  for (const [name, { kinds, bad, good }] of Object.entries(GENERATE)) {
    const types = valuesBut(...kinds).map((value) => generate(name, value));
    await refuses(types, TypeError, name, false);
    const values = bad.map((value) => generate(name, value));
    await refuses(values, RangeError, name, false);
    for (const value of [undefined, ...good]) {
      const options = { maxTokens: 1, [name]: value };
      await using generation = model.generate([1, 5], options);
      if (name === "maxTokens" && value !== 1) continue;
      assertEquals((await generation.result()).tokens.length, 1);
    }
  }
  for (const [name, value] of [["stop", [5]], ["stopTokens", ["5"]]] as const) {
    await refuses([generate(name, value)], TypeError, name, false);
  }
  await refuses([generate("logitBias", { 5: "1" })], TypeError, "5", false);
  await refuses([generate("topp", 1)], TypeError, "topp", false);
  const options = valuesBut("object");
  const calls = options.map((value) => () =>
    model.generate("a", value as object)
  );
  await refuses(calls, TypeError, "options", false);
});

Deno.test("generate() refuses every input of a wrong type or value at the call", async () => {
  await using model = await loadModel(NANO);
  const generate = (input: unknown) => () => model.generate(input as string);
  const types = [...valuesBut("string", "array"), undefined];
  await refuses(types.map(generate), TypeError, "input", false);
  const message = { role: "user", content: "a" };
  for (
    const [input, name] of [
      [[null], "messages[0]"],
      [["a"], "tokens[0]"],
      [[1, "a"], "tokens[1]"],
      [[1, null], "tokens[1]"],
      [[1, message], "tokens[1]"],
      [[message, 1], "messages[1]"],
      [[message, null], "messages[1]"],
      [[{ role: "user" }], "content"],
      [[{ role: "user", content: null }], "content"],
      [[{ role: "user", content: [] }], "content"],
      [[{ content: "a" }], "role"],
      [[{ role: "robot", content: "a" }], "role"],
      [[{ ...message, tool_calls: {} }], "tool_calls"],
      [[{ ...message, more: () => 1 }], "more"],
      [[{ ...message, more: { deep: [Symbol("s")] } }], "more"],
      [[{ ...message, more: 1n }], "more"],
      [[{ ...message, more: new WeakMap() }], "messages"],
    ] as const
  ) {
    await refuses([generate(input)], TypeError, name, false);
  }
  for (
    const [input, name] of [
      [[], "empty"],
      [[-1], "-1"],
      [[4096], "4096"],
      [[1, NaN], "NaN"],
      [[1, 1.5], "1.5"],
      [new Array(8193).fill(5), "8193"],
    ] as const
  ) {
    await refuses([generate(input)], RangeError, name, false);
  }
});

Deno.test("forward() and score() reject wrong arguments", async () => {
  await using model = await loadModel(NANO);
  const methods = [
    (tokens: unknown, options?: unknown) =>
      model.forward(tokens as number[], options as object),
    (tokens: unknown, options?: unknown) =>
      model.score(tokens as number[], options as object),
  ];
  for (const call of methods) {
    const types = [...valuesBut("array"), undefined, ["a"], [null], [1, {}]];
    await refuses(
      types.map((value) => () => call(value)),
      TypeError,
      "tokens",
      true,
    );
    for (const value of [[], [-1], [4096], [0.5], [NaN]]) {
      await refuses([() => call(value)], RangeError, "token", true);
    }
    await refuses(
      [() => call(new Array(8193).fill(5))],
      RangeError,
      "8193",
      true,
    );
    const options = valuesBut("object");
    await refuses(
      options.map((value) => () => call([1, 5], value)),
      TypeError,
      "options",
      true,
    );
    for (const name of ["cache", "signal"]) {
      const calls = valuesBut().map((value) => () =>
        call([1, 5], { [name]: value })
      );
      await refuses(calls, TypeError, name, true);
      await call([1, 5], { [name]: undefined });
    }
    await refuses([() => call([1], { cashe: 1 })], TypeError, "cashe", true);
  }
  const [forward] = methods;
  const logits = (value: unknown) => () => forward([1, 5], { logits: value });
  await refuses(valuesBut("string").map(logits), TypeError, "logits", true);
  await refuses(["", "first"].map(logits), RangeError, "logits", true);
  assertEquals((await forward([1, 5], { logits: undefined })).length, 4096);
});

Deno.test("createCache(), truncate(), save() and loadCache() refuse wrong arguments", async () => {
  await using model = await loadModel(NANO);
  const create = (options: unknown) => () =>
    model.createCache(options as object);
  await refuses(
    valuesBut("object").map(create),
    TypeError,
    "options",
    false,
  );
  const option = (name: string) => (value: unknown) =>
    create({ [name]: value });
  await refuses(
    valuesBut("number").map(option("capacity")),
    TypeError,
    "capacity",
    false,
  );
  await refuses(
    [0, -1, 0.5, NaN, Infinity, 8193].map(option("capacity")),
    RangeError,
    "capacity",
    false,
  );
  await refuses(
    valuesBut("string").map(option("type")),
    TypeError,
    "type",
    false,
  );
  await refuses(
    ["", "int4", "F32"].map(option("type")),
    RangeError,
    "type",
    false,
  );
  await refuses([option("capcity")(5)], TypeError, "capcity", false);
  await using cache = model.createCache({
    capacity: undefined,
    type: undefined,
  });
  assertEquals(cache.type, "bf16");
  assertEquals(cache.capacity, 8192);
  await model.forward([1, 5, 6], { cache });
  const truncate = (value: unknown) => () => cache.truncate(value as number);
  await refuses(
    [...valuesBut("number"), undefined].map(truncate),
    TypeError,
    "length",
    false,
  );
  await refuses(
    [-1, 0.5, NaN, Infinity, 4].map(truncate),
    RangeError,
    "length",
    false,
  );
  assertEquals(cache.length, 3);
  const paths = [...valuesBut("string"), undefined];
  await refuses(
    paths.map((value) => () => cache.save(value as string)),
    TypeError,
    "path",
    true,
  );
  await refuses(
    paths.map((value) => () => model.loadCache(value as string)),
    TypeError,
    "path",
    true,
  );
  await using other = await loadModel(NANO);
  await using foreign = other.createCache();
  await refuses(
    [() => model.generate("a", { cache: foreign })],
    TypeError,
    "cache",
    false,
  );
  await refuses(
    [() => model.forward([1], { cache: foreign })],
    TypeError,
    "cache",
    true,
  );
});
