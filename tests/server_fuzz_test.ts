/** Requests that are nearly right: answered, or refused in OpenAI's shape. */
import { assert, assertEquals } from "@std/assert";
import { openLibraries } from "./support/open_library.ts";
import { Random } from "./support/numbers.ts";
import { CHAT, checkAlive, errorOf, withServer } from "./support/server.ts";

openLibraries();

const COUNT = 10_000;
const utf8 = new TextEncoder();

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

const TOOL = {
  type: "function",
  function: {
    name: "get",
    description: "It",
    strict: false,
    parameters: {
      type: "object",
      properties: { n: { type: "integer", minimum: 1 }, s: { enum: ["a"] } },
      required: ["n"],
    },
  },
};

/** Requests that are right, with every field that the server reads. */
const RIGHT: readonly [path: string, body: Json][] = [
  [CHAT, {
    model: "nano",
    messages: [
      { role: "system", content: "Be brief." },
      { role: "user", content: [{ type: "text", text: "Hi" }] },
      {
        role: "assistant",
        content: "",
        tool_calls: [{
          id: "call_1",
          type: "function",
          function: { name: "get", arguments: "{}" },
        }],
      },
      { role: "tool", tool_call_id: "call_1", content: "ok" },
      { role: "user", content: "And?" },
    ],
    max_tokens: 3,
    temperature: 0.5,
    top_p: 0.9,
    top_k: 5,
    min_p: 0.01,
    repetition_penalty: 1.1,
    n: 2,
    stop: ["x", "y"],
    seed: 4,
    logprobs: true,
    top_logprobs: 2,
    logit_bias: { "5": 1 },
    presence_penalty: 0.5,
    frequency_penalty: 0.5,
    stream: true,
    stream_options: { include_usage: true },
  }],
  [CHAT, {
    messages: [{ role: "user", content: "Hi" }],
    max_completion_tokens: 3,
    tools: [TOOL],
    tool_choice: { type: "function", function: { name: "get" } },
    parallel_tool_calls: false,
  }],
  [CHAT, {
    messages: [{ role: "user", content: "Hi" }],
    max_tokens: 3,
    response_format: {
      type: "json_schema",
      json_schema: { name: "x", schema: TOOL.function.parameters },
    },
  }],
  ["/v1/completions", {
    prompt: ["Once", [0, 5, 6]] as Json,
    max_tokens: 3,
    n: 1,
    best_of: 1,
    echo: true,
    logprobs: 1,
    min_tokens: 1,
    stop_token_ids: [7],
    ignore_eos: true,
  }],
  ["/v1/completions", { prompt: "Once", suffix: "end", max_tokens: 2 }],
  ["/v1/tokenize", { prompt: "Once", add_special_tokens: false }],
  ["/v1/tokenize", {
    messages: [{ role: "user", content: "Hi" }],
    add_generation_prompt: false,
  }],
];

const STRANGE: readonly Json[] = [
  null,
  true,
  false,
  0,
  -1,
  -0.5,
  1e308,
  -1e308,
  2 ** 53,
  2 ** 31,
  1e-320,
  "",
  "0",
  "null",
  "\u0000",
  "\ud800",
  "<｜end▁of▁sentence｜>",
  "x".repeat(5000),
  "🦊".repeat(300),
  [],
  [[]],
  [null],
  [[[[[[[[]]]]]]]],
  {},
  { type: "function" },
  { $ref: "#" },
  { a: { a: { a: { a: {} } } } },
  Array(2000).fill(0),
  Array(200).fill({ role: "user", content: "a" }),
];
const KEYS = [
  "__proto__",
  "constructor",
  "toString",
  "",
  "0",
  "length",
  "then",
];

class Mutator {
  readonly #random: Random;

  constructor(seed: number) {
    this.#random = new Random(seed);
  }

  #below(count: number): number {
    return Math.floor(this.#random.uniform() * count);
  }

  #pick<T>(list: readonly T[]): T {
    return list[this.#below(list.length)];
  }

  /** Changes one place of a value, as deep as chance has it. */
  #change(value: Json): Json {
    const inside = typeof value === "object" && value !== null &&
      Object.keys(value).length > 0 && this.#below(5) > 0;
    if (!inside) return this.#pick(STRANGE);
    if (Array.isArray(value)) {
      const at = this.#below(value.length);
      const copy = value.slice();
      if (this.#below(8) === 0) copy.splice(at, 1);
      else copy[at] = this.#change(copy[at]);
      return copy;
    }
    const key = this.#pick(Object.keys(value));
    const entries = Object.entries(value).filter(([name]) => name !== key);
    const kind = this.#below(10);
    if (kind === 0) return Object.fromEntries(entries);
    const name = kind === 1 ? this.#pick(KEYS) : key;
    return Object.fromEntries([...entries, [name, this.#change(value[key])]]);
  }

  /** Changes bytes of a text. */
  #damage(text: string): Uint8Array<ArrayBuffer> {
    const bytes = utf8.encode(text);
    const kind = this.#below(3);
    if (kind === 0) return bytes.slice(0, this.#below(bytes.length));
    for (let i = this.#below(4); i >= 0; i--) {
      bytes[this.#below(bytes.length)] = this.#below(256);
    }
    if (kind === 1) return bytes;
    const at = this.#below(bytes.length);
    return new Uint8Array([...bytes.slice(0, at), ...bytes.slice(at - 9)]);
  }

  next(): { path: string; body: Uint8Array<ArrayBuffer> } {
    const [path, right] = this.#pick(RIGHT);
    let body = right;
    for (let i = this.#below(6); i >= 0; i--) body = this.#change(body);
    const text = JSON.stringify(body);
    const damaged = this.#below(4) === 0 && text.length > 0;
    return { path, body: damaged ? this.#damage(text) : utf8.encode(text) };
  }
}

Deno.test(`${COUNT} mutated requests are answered, wrong ones with an error`, async () => {
  await withServer(async (server) => {
    const { base, handler, log } = server;
    const mutator = new Mutator(1);
    const statuses = new Map<number, number>();
    let sent = 0, resident = 0;
    const worker = async () => {
      while (sent < COUNT) {
        const number = sent++;
        if (number === COUNT / 2) resident = Deno.memoryUsage().rss;
        const { path, body } = mutator.next();
        const request = new Request(base + path, {
          method: "POST",
          headers: { "content-type": "application/json" },
          body,
        });
        // Some on the network, which costs more than the rest.
        const response = await (number % 8 ? handler(request) : fetch(request));
        const { status } = response;
        statuses.set(status, (statuses.get(status) ?? 0) + 1);
        if (status === 200) {
          const text = await response.text();
          assert(!text.includes('"internal_error"'));
          continue;
        }
        await errorOf(response);
        const told = new TextDecoder().decode(body).slice(0, 2000);
        assert(status >= 400 && status < 500, `${status} for ${told}`);
      }
    };
    await Promise.all(Array.from({ length: 16 }, worker));
    assert(statuses.get(400)! > COUNT / 4);
    assert(statuses.get(200)! > COUNT / 50);
    assertEquals(log.filter(({ level }) => level === "error"), []);
    const grown = Deno.memoryUsage().rss - resident;
    assert(grown < 150 << 20, `${grown} bytes more in the second half`);
    await checkAlive(server);
  }, { maxTokens: 3 });
});
