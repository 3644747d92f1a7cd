/** What a hostile client may send: an error in OpenAI's shape, never a crash, a hang or a leak. */
import { assert, assertEquals } from "@std/assert";
import { openLibraries } from "./support/open_library.ts";
import { Random } from "./support/numbers.ts";
import {
  errorOf,
  type TestServer,
  until,
  withServer,
} from "./support/server.ts";

openLibraries();

const COUNT = 10_000;
const CHAT = "/v1/chat/completions";
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

/** The server answers as before, and holds nothing. */
async function checkAlive({ post, model, metric }: TestServer) {
  await until(() => model.load.running === 0, "the engine is idle");
  await until(
    async () => await metric("moela_requests_active") === 0,
    "no request is active",
  );
  assertEquals(model.memory().caches, 0);
  const answer = await post(CHAT, {
    messages: [{ role: "user", content: "What is 12 + 30?" }],
    temperature: 0,
  });
  assertEquals((await answer.json()).choices[0].message.content, "42");
}

const LIMITS = { maxTokens: 3, bodyTimeoutMs: 400, maxBodyBytes: 1 << 20 };

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
  }, LIMITS);
});

/** Whether a text is a whole answer of HTTP. */
function isWhole(text: string): boolean {
  const end = text.indexOf("\r\n\r\n");
  const length = /\r\ncontent-length: (\d+)\r\n/i.exec(text)?.[1];
  return end >= 0 && text.length >= end + 4 + Number(length ?? 0);
}

/** Sends raw bytes, and reads until there is an answer, or the connection ends. */
async function raw(
  base: string,
  send: (connection: Deno.Conn) => Promise<void>,
): Promise<string> {
  const { port } = new URL(base);
  const connection = await Deno.connect({
    hostname: "127.0.0.1",
    port: Number(port),
  });
  // The server may end it before everything was sent.
  const sending = send(connection).catch(() => {});
  let text = "";
  try {
    const buffer = new Uint8Array(4096);
    while (!isWhole(text)) {
      const count = await connection.read(buffer);
      if (count === null) break;
      text += new TextDecoder().decode(buffer.subarray(0, count));
    }
  } catch {
    // Reset: what was read until then counts.
  }
  connection.close();
  await sending;
  return text;
}

const head = (fields: string) =>
  utf8.encode(
    `POST ${CHAT} HTTP/1.1\r\nHost: localhost\r\n` +
      `Content-Type: application/json\r\n${fields}\r\n\r\n`,
  );

/** Checks an answer that was read from a connection. */
function checkRaw(text: string, status: number, code: string) {
  assert(text.startsWith(`HTTP/1.1 ${status} `), text.slice(0, 200));
  const { error } = JSON.parse(text.slice(text.indexOf("\r\n\r\n") + 4));
  assertEquals(error.code, code);
}

const wait = (milliseconds: number) =>
  new Promise<void>((resolve) => setTimeout(resolve, milliseconds));

Deno.test("bodies that come slowly or not at all are given up", async () => {
  await withServer(async (server) => {
    const answers = await Promise.all(
      Array.from(
        { length: 60 },
        (_, i) =>
          raw(server.base, async (connection) => {
            await connection.write(head("Content-Length: 1000"));
            if (i % 2) return;
            for (;;) {
              await connection.write(utf8.encode(" "));
              await wait(20);
            }
          }),
      ),
    );
    for (const text of answers) checkRaw(text, 408, "body_timeout");
    await checkAlive(server);
  }, LIMITS);
});

Deno.test("a body of 1 GB is refused early, and not kept", async () => {
  await withServer(async (server) => {
    const { base } = server;
    const announced = await raw(
      base,
      async (connection) => {
        await connection.write(head("Content-Length: 1000000000"));
      },
    );
    checkRaw(announced, 413, "request_too_large");

    const before = Deno.memoryUsage().rss;
    const piece = utf8.encode(`10000\r\n${" ".repeat(0x10000)}\r\n`);
    let sent = 0;
    const answer = await raw(base, async (connection) => {
      await connection.write(head("Transfer-Encoding: chunked"));
      while (sent < 1e9) {
        // Others have to have their turn in this process.
        await wait(0);
        let at = 0;
        while (at < piece.length) {
          at += await connection.write(piece.subarray(at));
        }
        sent += piece.length;
      }
    });
    // The connection may be reset before the client has read why.
    if (answer !== "") checkRaw(answer, 413, "request_too_large");
    assert(sent < 1e8, `${sent} bytes were taken`);
    assert(Deno.memoryUsage().rss - before < 100 << 20);
    await checkAlive(server);
  }, LIMITS);
});

Deno.test("deep JSON, bad UTF-8 and what is no HTTP end in an error", async () => {
  await withServer(async (server) => {
    const { base, post } = server;
    const refused = async (body: string | Uint8Array<ArrayBuffer>) => {
      const response = await fetch(base + CHAT, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body,
      });
      assertEquals(response.status, 400);
      return (await errorOf(response)).code;
    };
    assertEquals(await refused("[".repeat(900_000)), "invalid_json");
    assertEquals(await refused('{"a":'.repeat(150_000)), "invalid_json");
    const deep = "[".repeat(5000) + "]".repeat(5000);
    assertEquals(await refused(`{"messages":${deep}}`), "invalid_json");
    assertEquals(await refused(""), "invalid_json");
    for (const bytes of [[0xff], [0xc3], [0xed, 0xa0, 0x80], [0xf8, 0x88]]) {
      const text = new Uint8Array([0x22, ...bytes, 0x22]);
      assertEquals(await refused(text), "invalid_utf8");
    }
    // Deep within what is allowed, and wide.
    let schema: Json = { type: "string" };
    for (let i = 0; i < 55; i++) {
      schema = { type: "object", properties: { a: schema }, required: ["a"] };
    }
    const wide = Object.fromEntries(
      Array.from({ length: 3000 }, (_, i) => [`p${i}`, { type: "string" }]),
    );
    for (const parameters of [schema, { type: "object", properties: wide }]) {
      const response = await post(CHAT, {
        messages: [{ role: "user", content: "Hi" }],
        max_tokens: 4,
        tools: [{ type: "function", function: { name: "f", parameters } }],
        tool_choice: "required",
      });
      if (response.status !== 200) {
        assertEquals(response.status, 400);
        await errorOf(response);
      } else await response.text();
    }
    for (
      const text of [
        "\r\n\r\n",
        "GET\r\n\r\n",
        `POST ${CHAT} HTTP/9.9\r\n\r\n`,
        `POST ${CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n`,
        `GET / HTTP/1.1\r\nHost: x\r\n${"a: b\r\n".repeat(9000)}\r\n`,
        "\u0000\u0001\u0002".repeat(500),
      ]
    ) {
      const answer = await raw(base, async (connection) => {
        await connection.write(utf8.encode(text));
        await connection.closeWrite();
      });
      assert(answer === "" || /^HTTP\/1\.. 4\d\d /.test(answer), answer);
    }
    await checkAlive(server);
  }, LIMITS);
});

Deno.test("clients that do not read their streams hold nobody up", async () => {
  await withServer(async (server) => {
    const { base, post, model } = server;
    const { port } = new URL(base);
    const body = JSON.stringify({
      messages: [{ role: "user", content: "Hi" }],
      max_tokens: 3000,
      ignore_eos: true,
      logprobs: true,
      top_logprobs: 20,
      stream: true,
    });
    const connections = await Promise.all(
      Array.from({ length: 8 }, async () => {
        const connection = await Deno.connect({
          hostname: "127.0.0.1",
          port: Number(port),
        });
        await connection.write(head(`Content-Length: ${body.length}`));
        await connection.write(utf8.encode(body));
        return connection;
      }),
    );
    await until(() => model.load.running === 8, "all run");
    const answer = await post(CHAT, {
      messages: [{ role: "user", content: "What is 12 + 30?" }],
      temperature: 0,
    });
    assertEquals((await answer.json()).choices[0].message.content, "42");
    for (const connection of connections) connection.close();
    await checkAlive(server);
  }, { ...LIMITS, maxTokens: 3000 });
});
