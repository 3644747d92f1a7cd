/** Grammars in the generation loop: nano at a temperature at which it babbles. */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { Ajv2020 } from "ajv/dist/2020.js";
import formats from "ajv-formats";
import { loadModel } from "../mod.ts";
import { openLibraries } from "./support/open_library.ts";
import { SCHEMAS } from "./support/grammar.ts";

openLibraries();
const NANO = new URL("../models/nano/", import.meta.url);
const names = Object.keys(SCHEMAS);
const ajv = new Ajv2020({ strict: false });
formats.default(ajv);

Deno.test("200 outputs of over 40 schemas at temperature 1.5 parse and validate", async () => {
  assert(names.length >= 40);
  await using model = await loadModel(NANO);
  // At this temperature strings and recursion would go on for thousands of tokens.
  const closing = Array.from({ length: 4096 }, (_, id) => id).filter((id) =>
    /["\]}]/.test(model.tokenizer.decode([id]))
  );
  const logitBias = Object.fromEntries(closing.map((id) => [id, 4]));
  await Promise.all(Array.from({ length: 200 }, async (_, seed) => {
    const name = names[seed % names.length];
    const validate = ajv.compile(SCHEMAS[name]);
    const generation = model.generate("User: Give me JSON.\n\nAssistant:", {
      grammar: { json: SCHEMAS[name] },
      temperature: 1.5,
      topP: 1,
      seed,
      logitBias,
    });
    const { text, finishReason } = await generation.result();
    assertEquals(finishReason, "stop", `${name}, seed ${seed}`);
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch (cause) {
      throw new Error(`${name}, seed ${seed}: ${text}`, { cause });
    }
    assert(validate(value), `${name}, seed ${seed}: ${text}`);
  }));
  assertEquals(model.memory().caches, 0);
});

Deno.test("choices, regular expressions and EBNF hold beside everything else", async () => {
  await using model = await loadModel(NANO);
  const cache = model.createCache();
  await model.generate("The answer is", { cache, maxTokens: 0 }).result();
  const base = { temperature: 1.5, topP: 1, maxTokens: 200, logprobs: 1 };
  for (let seed = 0; seed < 10; seed++) {
    const options = { ...base, seed, cache: cache.fork() };
    const [choice, regex, ebnf, free] = await Promise.all([
      model.generate("The answer is", {
        ...options,
        grammar: { choices: ["yes", "no", "não"] },
        ignoreEos: true,
        minTokens: 50,
      }).result(),
      model.generate("The answer is", {
        ...base,
        seed,
        grammar: { regex: "[a-f]{3}-\\d{2,4}" },
      }).result(),
      model.generate("The answer is", {
        ...base,
        seed,
        grammar: { ebnf: 'root ::= "(" root ")" | [0-9]' },
      }).result(),
      model.generate("The answer is", { ...base, seed, maxTokens: 5 }).result(),
    ]);
    assert(["yes", "no", "não"].includes(choice.text), choice.text);
    assert(/^[a-f]{3}-\d{2,4}$/.test(regex.text), regex.text);
    assert(/^\(*[0-9]\)*$/.test(ebnf.text), ebnf.text);
    for (const { finishReason, tokens, logprobs } of [choice, regex, ebnf]) {
      assertEquals(finishReason, "stop");
      assertEquals(tokens[tokens.length - 1], 1);
      assertEquals(logprobs?.length, tokens.length);
    }
    assert(free.tokens.length > 0);
    options.cache.dispose();
  }
});

Deno.test("a grammar wins over a bias that forbids all it allows", async () => {
  await using model = await loadModel(NANO);
  const forbidden = Object.fromEntries(
    Array.from({ length: 4096 }, (_, id) => [id, -Infinity]),
  );
  const { text } = await model.generate("x", {
    grammar: { choices: ["7"] },
    logitBias: forbidden,
    temperature: 1,
  }).result();
  assertEquals(text, "7");
});

Deno.test("a stop string and a limit cut an output that could go on", async () => {
  await using model = await loadModel(NANO);
  const grammar = { json: { type: "array", items: { type: "integer" } } };
  const cut = model.generate("x", { grammar, maxTokens: 1, temperature: 0 });
  assertEquals((await cut.result()).text.startsWith("["), true);
  await assertRejects(() => cut.json(), SyntaxError, "length");
  const stopped = await model.generate("x", { grammar, stop: "[" }).result();
  assertEquals([stopped.text, stopped.finishReason], ["", "stop"]);
});

Deno.test("generate() refuses at the call what cannot be enforced", async () => {
  await using model = await loadModel(NANO);
  const refuse = (grammar: unknown, message: string) =>
    assertThrows(
      () => model.generate("x", { grammar: grammar as { regex: string } }),
      TypeError,
      message,
    );
  refuse({ json: { type: "integer", multipleOf: 3 } }, "multipleOf");
  refuse({ regex: "a(?=b)" }, "grammar.regex");
  refuse({ choices: [] }, "grammar.choices");
  refuse({ json: {}, regex: "a" }, "exactly one");
  refuse(null, "grammar is null");
  assertEquals(model.load, { running: 0, waiting: 0 });
  assertEquals(model.memory().caches, 0);
});
