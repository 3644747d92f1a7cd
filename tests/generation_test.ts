/** A `Generation` as an object: who may read it, what ends it, and what nobody has to await. */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import {
  type Chunk,
  DisposedError,
  type GenerateOptions,
  loadModel,
  type Message,
} from "../mod.ts";
import { changeJson, inFolder } from "./support/folder.ts";
import { openLibraries } from "./support/open_library.ts";

openLibraries();
const NANO = new URL("../models/nano/", import.meta.url);
const ENDLESS = { ignoreEos: true, maxTokens: 4000 };

const wait = (milliseconds: number) =>
  new Promise<void>((resolve) => setTimeout(resolve, milliseconds));

Deno.test("a generation is no promise, and has one iteration", async () => {
  await using model = await loadModel(NANO);
  const generation = model.generate("Once", { maxTokens: 3 });
  assert(!("then" in generation) && !("catch" in generation));
  assert(await (generation as unknown) === generation);
  for await (const _ of generation) { /* to the end */ }
  await assertRejects(
    async () => {
      for await (const _ of generation) { /* never */ }
    },
    TypeError,
    "has a reader already",
  );
  assertEquals(await generation.next(), { done: true, value: undefined });
  const { tokens } = await generation.result();
  // Ending what has ended changes nothing.
  await generation.return();
  await generation[Symbol.asyncDispose]();
  assertEquals((await generation.result()).tokens, tokens);
  assertEquals((await generation.result()).finishReason, "length");
});

Deno.test("an abort delivers what was produced, then its reason", async () => {
  await using model = await loadModel(NANO);
  const reason = { anything: "at all" };
  const controller = new AbortController();
  const { signal } = controller;
  const generation = model.generate("Once", { ...ENDLESS, signal });
  await wait(100);
  controller.abort(reason);
  const chunks: Chunk[] = [];
  let thrown: unknown;
  try {
    for await (const chunk of generation) chunks.push(chunk);
  } catch (error) {
    thrown = error;
  }
  assert(chunks.length > 0);
  assert(thrown === reason);
  for (
    const call of [
      () => generation.text(),
      () => generation.json(),
      () => generation.result(),
      () => generation.next(),
    ]
  ) {
    const failure = await call().then(() => undefined, (error) => error);
    assert(failure === reason);
  }
  const late = model.generate("Once", {
    ...ENDLESS,
    signal: AbortSignal.timeout(20),
  });
  const error = await assertRejects(() => late.text(), DOMException);
  assertEquals(error.name, "TimeoutError");
});

Deno.test("a rejection that nobody awaits is not an unhandled one", async () => {
  const unhandled: unknown[] = [];
  const listen = (event: PromiseRejectionEvent) => {
    event.preventDefault();
    unhandled.push(event.reason);
  };
  globalThis.addEventListener("unhandledrejection", listen);
  try {
    const model = await loadModel(NANO);
    const controller = new AbortController();
    const { signal } = controller;
    const make = () => model.generate("Once", { ...ENDLESS, signal });
    const before = make();
    before.text();
    before.json();
    before.result();
    const reading = make()[Symbol.asyncIterator]();
    for (let i = 0; i < 3; i++) reading.next();
    model.generate("Once", { signal: AbortSignal.abort("no") }).text();
    await wait(50);
    controller.abort(new Error("nobody sees this"));
    await wait(50);
    make().next();
    model.generate("Once", ENDLESS).text();
    await model[Symbol.asyncDispose]();
    await wait(50);
  } finally {
    globalThis.removeEventListener("unhandledrejection", listen);
  }
  assertEquals(unhandled, []);
});

Deno.test("json() refuses a number that was cut, and takes what is complete", async () => {
  await using model = await loadModel(NANO);
  const json = (options: GenerateOptions) =>
    model.generate("x", { temperature: 0, ...options }).json();
  await assertRejects(
    () => json({ grammar: { regex: "[1-9]{30}" }, maxTokens: 2 }),
    SyntaxError,
    'finishReason "length"',
  );
  assertEquals(await json({ grammar: { regex: "7" } }), 7);
  // All of it is there, though the closing token is not.
  const list = { regex: "\\[\\]" };
  const tokens = model.tokenizer.encode("[]", { addSpecialTokens: false });
  assertEquals(await json({ grammar: list, maxTokens: tokens.length }), []);
});

Deno.test("every token is counted once, whatever ends the output", async () => {
  await using model = await loadModel(NANO);
  const ends: GenerateOptions[] = [
    {},
    { stop: "e" },
    { stop: ["he", "and"] },
    { stopTokens: [13, 300] },
    { temperature: 2, topP: 1, seed: 3 },
    { grammar: { regex: "[a-z ]{3,30}" } },
  ];
  for (const end of ends) {
    const generation = model.generate("Once upon a time", {
      maxTokens: 60,
      logprobs: 1,
      ...end,
    });
    let tokens = 0, logprobs = 0, text = "";
    for await (const chunk of generation) {
      tokens += chunk.tokens.length;
      logprobs += chunk.logprobs?.length ?? 0;
      text += chunk.text;
    }
    const result = await generation.result();
    const { completionTokens } = result.usage;
    assertEquals([tokens, logprobs], [completionTokens, completionTokens]);
    assertEquals(result.tokens.length, completionTokens);
    assertEquals(result.logprobs?.length, completionTokens);
    assertEquals(result.text, text);
  }
});

Deno.test("a disposed model ends its generations, and what they had stays readable", async () => {
  const model = await loadModel(NANO);
  const cache = model.createCache();
  const finished = model.generate("Once", { maxTokens: 3 });
  const { tokens } = await finished.result();
  const running = [
    model.generate("Once", ENDLESS),
    model.generate("Once", { ...ENDLESS, cache }),
  ];
  // One after another: a GPU is done with one before the model is disposed.
  const forward = (async () => {
    for (;;) await model.forward(new Array(4000).fill(5));
  })();
  forward.catch(() => {});
  await wait(30);
  model.dispose();
  for (const generation of running) {
    await assertRejects(() => generation.result(), DisposedError);
    await assertRejects(async () => {
      for await (const _ of generation) { /* what there was */ }
    }, DisposedError);
  }
  await assertRejects(() => forward, DisposedError);
  await assertRejects(() => model.score([1, 2]), DisposedError);
  await assertRejects(() => model.loadCache("anywhere"), DisposedError);
  await assertRejects(() => cache.save("anywhere"), DisposedError);
  for (
    const use of [
      () => model.memory(),
      () => model.clearPrefixCache(),
      () => cache.tokens,
      () => cache.bytes,
      () => cache.bytesPerToken,
      () => cache.fork(),
      () => cache.truncate(0),
    ]
  ) assertThrows(use, DisposedError);
  assertEquals((await finished.result()).tokens, tokens);
  assertEquals(typeof await finished.text(), "string");
  await model[Symbol.asyncDispose]();
});

Deno.test("a conversation pays only for what is new, whoever puts the space before an answer", async () => {
  const turns = (between: string, before: string) =>
    "{{ bos_token }}{% for message in messages %}" +
    "{% if message['role'] == 'user' %}" +
    `{{ 'User: ' + message['content'] + '\n\n${between}' }}` +
    "{% else %}" +
    `{{ '${before}' + message['content'] + eos_token }}` +
    "{% endif %}{% endfor %}";
  const templates = [
    // As V2's: the template has "Assistant:" before a prompt's end, and "Assistant: " in an answer.
    turns("", "Assistant: ") +
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
    // As V2.5's and V3's: what the user said ends with the mark, and the answer is as it was written.
    turns("Assistant:", ""),
  ];
  for (const [i, chat_template] of templates.entries()) {
    await inFolder(async (folder) => {
      for (const { name } of Deno.readDirSync(NANO)) {
        await Deno.copyFile(new URL(name, NANO), `${folder}/${name}`);
      }
      await changeJson(
        `${folder}/tokenizer_config.json`,
        (json) => json.chat_template = chat_template,
      );
      await using model = await loadModel(folder, { weights: "f32" });
      const cache = model.createCache();
      const messages: Message[] = [];
      const answers: string[] = [];
      for (const content of ["What is 12 + 30?", "What is 73 - 43?", "Hi"]) {
        messages.push({ role: "user", content });
        const held = cache.length;
        const { message, usage, finishReason } = await model.generate(
          messages,
          { cache, temperature: 0, maxTokens: 50 },
        ).result();
        assertEquals(finishReason, "stop");
        assertEquals(usage.cachedTokens, held);
        assertEquals(
          cache.length,
          usage.promptTokens + usage.completionTokens,
        );
        messages.push(message);
        answers.push(message.content);
      }
      const space = i === 0 ? "" : " ";
      assertEquals(answers.slice(0, 2), [`${space}42`, `${space}30`]);
    });
  }
});
