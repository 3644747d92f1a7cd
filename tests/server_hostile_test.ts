/** What a hostile client may send: an error in OpenAI's shape, never a crash, a hang or a leak. */
import { assert, assertEquals } from "@std/assert";
import { openLibraries } from "./support/open_library.ts";
import {
  CHAT,
  checkAlive,
  errorOf,
  until,
  withServer,
} from "./support/server.ts";

openLibraries();

const utf8 = new TextEncoder();

const LIMITS = { maxTokens: 3, bodyTimeoutMs: 400, maxBodyBytes: 1 << 20 };

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
    let schema: unknown = { type: "string" };
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
