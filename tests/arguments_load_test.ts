/** Wrong arguments of loadModel() and the tokenizer. */
import { assertEquals } from "@std/assert";
import { loadModel, type LoadOptions } from "../mod.ts";
import {
  integer,
  type Option,
  refuses,
  valuesBut,
} from "./support/arguments.ts";
import { openLibraries } from "./support/open_library.ts";

openLibraries();

const NANO = new URL("../models/nano/", import.meta.url);

Deno.test("the tokenizer throws at the call for wrong arguments", async () => {
  await using model = await loadModel(NANO);
  const { tokenizer } = model;
  const any = (value: unknown) => value as never;
  const types = (
    call: (value: unknown) => unknown,
    name: string,
    ...kinds: string[]
  ) =>
    refuses(
      [...valuesBut(...kinds), undefined].map((value) => () => call(value)),
      TypeError,
      name,
      false,
    );
  await types(
    (value) => tokenizer.encode(any(value)),
    "input",
    "string",
    "array",
  );
  for (const method of ["decode", "pieces"] as const) {
    await types((value) => tokenizer[method](any(value)), "tokens", "array");
    await types(
      (value) => tokenizer[method](any([1, value])),
      "tokens[1]",
      "number",
    );
    for (const id of [-1, 4096, 0.5, NaN, Infinity]) {
      await refuses(
        [() => tokenizer[method]([1, id])],
        RangeError,
        "tokens[1]",
        false,
      );
    }
  }
  await types(
    (value) => tokenizer.applyChatTemplate(any(value)),
    "messages",
    "array",
  );
  const messages = [{ role: "user", content: "a" }];
  const flags: [string, (options: object) => unknown][] = [
    ["addSpecialTokens", (options) => tokenizer.encode("a", options)],
    ["allowSpecial", (options) => tokenizer.encode("a", options)],
    ["addGenerationPrompt", (options) => tokenizer.encode(messages, options)],
    ["skipSpecialTokens", (options) => tokenizer.decode([1], options)],
    [
      "addGenerationPrompt",
      (options) => tokenizer.applyChatTemplate(messages, options),
    ],
  ];
  for (const [name, call] of flags) {
    const values = valuesBut("boolean");
    await refuses(
      values.map((value) => () => call({ [name]: value })),
      TypeError,
      name,
      false,
    );
    assertEquals(call({ [name]: undefined }), call({}));
    const options = valuesBut("object");
    await refuses(
      options.map((value) => () => call(any(value))),
      TypeError,
      "options",
      false,
    );
  }
});

const LOAD: Record<keyof LoadOptions, Option> = {
  device: {
    kinds: ["string"],
    bad: ["", "CPU", "cuda:", "cuda:-1", "tpu", " cpu"],
    good: ["cpu"],
  },
  weights: {
    kinds: ["string"],
    bad: ["", "F32", "int6"],
    good: ["auto", "bf16"],
  },
  kernels: { kinds: ["string"], bad: ["", "sse", "AVX2"], good: ["reference"] },
  threads: integer([0, -1, 1025], [1, 3]),
  cacheBytes: integer([0, -1, 2 ** 53], [2 ** 20]),
  prefixCacheBytes: integer([-1, 2 ** 53], [0, 2 ** 30]),
  maxBatch: integer([0, -1, 2 ** 20], [1, 300]),
  batchInvariant: { kinds: ["boolean"], bad: [], good: [true, false] },
  onProgress: { kinds: ["function"], bad: [], good: [() => {}] },
  signal: { kinds: [], bad: [], good: [new AbortController().signal] },
};

Deno.test("loadModel() rejects every option of a wrong type or value", async () => {
  const load = (options: unknown) => () => loadModel(NANO, options as object);
  const options = valuesBut("object");
  await refuses(options.map(load), TypeError, "options", true);
  await refuses([load({ thread: 1 })], TypeError, "thread", true);
  for (const [name, { kinds, bad, good }] of Object.entries(LOAD)) {
    const option = (value: unknown) => load({ [name]: value });
    await refuses(valuesBut(...kinds).map(option), TypeError, name, true);
    await refuses(bad.map(option), RangeError, name, true);
    for (const value of good) {
      await using model = await loadModel(NANO, { [name]: value });
      assertEquals(model.config.vocab_size, 4096);
    }
  }
  const paths = [...valuesBut("string"), undefined];
  await refuses(
    paths.map((path) => () => loadModel(path as string)),
    TypeError,
    "path",
    true,
  );
});
