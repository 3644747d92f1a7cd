/** What a server allows, and what it tells. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { createHandler, loadModel } from "../mod.ts";
import { openLibraries } from "./support/open_library.ts";
import { CHAT, errorOf, until, withServer } from "./support/server.ts";

openLibraries();

const chat = (more: object = {}) => ({
  messages: [{ role: "user", content: "Hi" }],
  max_tokens: 4,
  ...more,
});
/** One that goes on until it is stopped. */
const long = (more: object = {}) =>
  chat({ max_tokens: 6000, ignore_eos: true, ...more });

Deno.test("createHandler() refuses bad options", async () => {
  await using model = await loadModel(
    new URL("../models/nano", import.meta.url),
    { cacheBytes: 1 << 20 },
  );
  const fails = (options: object) => {
    try {
      createHandler(model, options);
    } catch (error) {
      return (error as Error).message;
    }
    throw new Error("It took them");
  };
  assert(fails({ maxQueue: -1 }).includes("maxQueue is -1"));
  assert(fails({ maxBodyBytes: 1.5 }).includes("maxBodyBytes is 1.5"));
  assert(fails({ requestTimeoutMs: "1" }).includes("requestTimeoutMs"));
  assert(fails({ apiKeys: [""] }).includes("apiKeys"));
});

Deno.test("the server wants one of its keys, but not for health and metrics", async () => {
  await withServer(async ({ base, post }) => {
    for (
      const [authorization, status] of [
        ["Bearer one", 200],
        ["bearer two", 200],
        ["Bearer on", 401],
        ["Bearer onee", 401],
        ["Basic one", 401],
        ["", 401],
      ] as const
    ) {
      const response = await post(CHAT, chat(), { authorization });
      assertEquals(response.status, status);
      if (status === 200) await response.body!.cancel();
      else {
        const error = await errorOf(response);
        assertEquals(error.code, "invalid_api_key");
        assertEquals(response.headers.get("www-authenticate"), "Bearer");
      }
    }
    for (const path of ["/health", "/metrics"]) {
      const response = await fetch(base + path);
      assertEquals(response.status, 200);
      await response.body!.cancel();
    }
    const models = await fetch(`${base}/v1/models`);
    assertEquals(models.status, 401);
    await models.body!.cancel();
  }, { apiKeys: ["one", "two"] });
});

Deno.test("the server names what is wrong with a request", async () => {
  await withServer(async ({ post }) => {
    const cases: [object | string, string | null][] = [
      ["[]", null],
      ["{", null],
      [{}, "messages"],
      [{ messages: [] }, "messages"],
      [{ messages: "Hi" }, "messages"],
      [{ messages: [null] }, "messages[0]"],
      [{ messages: [{ role: "user" }] }, "messages[0].content"],
      [{ messages: [{ role: "cat", content: "" }] }, "messages[0].role"],
      [
        { messages: [{ role: "user", content: [{ type: "image_url" }] }] },
        "messages[0].content[0].type",
      ],
      [chat({ temperature: "1" }), "temperature"],
      [chat({ top_p: 1.5 }), "top_p"],
      [chat({ n: 0 }), "n"],
      [chat({ n: 17 }), "n"],
      [chat({ max_tokens: 1.5 }), "max_tokens"],
      [chat({ max_completion_tokens: -1 }), "max_completion_tokens"],
      [chat({ stop: [1] }), "stop"],
      [chat({ stop: "" }), "stop"],
      [chat({ seed: "a" }), "seed"],
      [chat({ stream: 1 }), "stream"],
      [chat({ stream_options: {} }), "stream_options"],
      [chat({ logit_bias: { a: 1 } }), "logit_bias"],
      [chat({ logit_bias: { 5000: 1 } }), "logit_bias"],
      [chat({ logit_bias: { 5: 101 } }), "logit_bias.5"],
      [chat({ presence_penalty: 3 }), "presence_penalty"],
      [chat({ top_logprobs: 3 }), "top_logprobs"],
      [chat({ logprobs: true, top_logprobs: 21 }), "top_logprobs"],
      [chat({ response_format: { type: "xml" } }), "response_format.type"],
      [
        chat({ response_format: { type: "json_schema" } }),
        "response_format.json_schema",
      ],
      [
        chat({
          response_format: {
            type: "json_schema",
            json_schema: { schema: { type: "string", not: {} } },
          },
        }),
        "response_format",
      ],
    ];
    for (const [body, param] of cases) {
      const response = await post(CHAT, body);
      const error = await errorOf(response);
      assertEquals([response.status, error.param], [400, param]);
      assertEquals(error.type, "invalid_request_error");
    }
    const texts: [object, string][] = [
      [{}, "prompt"],
      [{ prompt: "", suffix: 3 }, "suffix"],
      [{ prompt: [] }, "prompt"],
      [{ prompt: [[1], "a", [true]] }, "prompt[2]"],
      [{ prompt: [4096] }, "prompt"],
      [{ prompt: [-1] }, "prompt"],
      [{ prompt: "a", best_of: 2 }, "best_of"],
      [{ prompt: "a", echo: "yes" }, "echo"],
      [{ prompt: ["a", "b"], n: 9 }, "n"],
    ];
    for (const [body, param] of texts) {
      const response = await post("/v1/completions", body);
      assertEquals(
        [response.status, (await errorOf(response)).param],
        [400, param],
      );
    }
    // What OpenAI's clients send, and has no meaning here.
    const ignored = await post(CHAT, chat({ store: true, user: null }));
    assertEquals(ignored.status, 200);
    await ignored.body!.cancel();
  });
});

Deno.test("unknown paths and methods are errors in the same shape", async () => {
  await withServer(async ({ base, post }) => {
    const status = async (path: string, method: string) => {
      const response = await fetch(base + path, { method });
      await errorOf(response);
      return response.status;
    };
    assertEquals(await status("/", "GET"), 404);
    assertEquals(await status("/v1/nothing", "GET"), 404);
    assertEquals(await status("/v1/models/%ff", "GET"), 404);
    assertEquals(await status("/../../etc/passwd", "GET"), 404);
    assertEquals(await status(CHAT, "GET"), 405);
    assertEquals(await status("/v1/models", "DELETE"), 405);
    assertEquals(await status("/health", "POST"), 405);
    const form = await post(CHAT, chat(), { "content-type": "text/plain" });
    await errorOf(form);
    assertEquals(form.status, 415);
  });
});

Deno.test("tokenize gives the ids that a prompt would be", async () => {
  await withServer(async ({ post, model: { tokenizer, config } }) => {
    const ask = async (body: object) =>
      await (await post("/v1/tokenize", body)).json();
    const text = "The fox 🦊";
    const told = await ask({ prompt: text });
    assertEquals(told.tokens, tokenizer.encode(text));
    assertEquals(told.count, told.tokens.length);
    assertEquals(told.max_model_len, config.max_position_embeddings);
    assertEquals(told.token_strs.join(""), tokenizer.decode(told.tokens));
    const bare = await ask({ prompt: text, add_special_tokens: false });
    assertEquals(bare.tokens, told.tokens.slice(1));
    const { messages } = chat();
    assertEquals(
      (await ask({ messages })).tokens,
      tokenizer.encode(messages),
    );
  });
});

Deno.test("requests beyond concurrency and queue get 429, those in the queue wait", async () => {
  await withServer(async ({ post, model, metric }) => {
    const first = await post(CHAT, long({ stream: true }));
    const second = post(CHAT, chat());
    second.catch(() => {});
    await until(
      async () => await metric("moela_queue_requests") === 1,
      "queued",
    );
    assertEquals(model.load, { running: 1, waiting: 0 });
    const third = await post(CHAT, chat());
    assertEquals(third.status, 429);
    assertEquals(third.headers.get("retry-after"), "1");
    assertEquals((await errorOf(third)).type, "rate_limit_error");
    await first.body!.cancel();
    assertEquals((await second).status, 200);
    await (await second).body!.cancel();
  }, { maxConcurrent: 1, maxQueue: 1 });
});

Deno.test("a request that takes too long is ended", async () => {
  await withServer(async ({ post, model }) => {
    const whole = await post(CHAT, long());
    assertEquals(whole.status, 504);
    assertEquals((await errorOf(whole)).code, "request_timeout");
    const streamed = await post(CHAT, long({ stream: true }));
    assertEquals(streamed.status, 200);
    const events = (await streamed.text()).trim().split("\n\n");
    const { error } = JSON.parse(events.at(-1)!.slice("data: ".length));
    assertEquals(error.code, "request_timeout");
    await until(() => model.load.running === 0, "the engine is idle");
  }, { requestTimeoutMs: 150 });
});

Deno.test("an answer that fails late ends its connection", async () => {
  await withServer(async ({ post, log }) => {
    const response = await post(CHAT, long());
    await assertRejects(() => response.text());
    await until(() => log.length === 1, "the request is logged");
    assertEquals([log[0].status, log[0].code], [504, "request_timeout"]);
  }, { requestTimeoutMs: 1300 });
});

Deno.test("prompts beyond the limits are refused before they are run", async () => {
  await withServer(async ({ post, model }) => {
    for (const content of ["fox ".repeat(60), "fox ".repeat(100_000)]) {
      const messages = [{ role: "user", content }];
      const response = await post(CHAT, chat({ messages }));
      const error = await errorOf(response);
      assertEquals(
        [response.status, error.code],
        [400, "context_length_exceeded"],
      );
    }
    const body = await post(CHAT, chat({ messages: "x".repeat(500_000) }));
    assertEquals([body.status, (await errorOf(body)).code], [
      413,
      "request_too_large",
    ]);
    assertEquals(model.memory().prefixCache, 0);
    const most = await post(CHAT, long({ max_tokens: 5000 }));
    assertEquals((await most.json()).usage.completion_tokens, 10);
  }, { maxPromptTokens: 50, maxBodyBytes: 450_000, maxTokens: 10 });
});

Deno.test("other origins are let in only when told", async () => {
  const origin = "https://chat.example.org";
  const preflight = { method: "OPTIONS", headers: { origin } };
  await withServer(async ({ base, post }) => {
    const asked = await fetch(base + CHAT, preflight);
    assertEquals(asked.status, 405);
    await errorOf(asked);
    const answer = await post(CHAT, chat(), { origin });
    assertEquals(answer.headers.get("access-control-allow-origin"), null);
    await answer.body!.cancel();
  });
  await withServer(async ({ base, post }) => {
    const asked = await fetch(base + CHAT, preflight);
    assertEquals(asked.status, 204);
    const name = "access-control-allow-origin";
    assertEquals(asked.headers.get(name), origin);
    const answer = await post(CHAT, chat(), { origin });
    assertEquals(answer.headers.get(name), origin);
    await answer.body!.cancel();
    const other = await post(CHAT, chat(), { origin: "https://else.org" });
    assertEquals(other.headers.get(name), null);
    await other.body!.cancel();
  }, { cors: [origin] });
});

Deno.test("a host's name that is not the server's is refused", async () => {
  await withServer(async ({ base }) => {
    const { port } = new URL(base);
    const status = async (host: string) => {
      const connection = await Deno.connect({
        hostname: "127.0.0.1",
        port: Number(port),
      });
      const text =
        `GET /health HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`;
      await connection.write(new TextEncoder().encode(text));
      const answer = await new Response(connection.readable).text();
      return Number(answer.split(" ")[1]);
    };
    assertEquals(await status(`127.0.0.1:${port}`), 200);
    assertEquals(await status(`evil.example:${port}`), 403);
  }, { hosts: ["127.0.0.1"] });
});

Deno.test("the page is served from its folder, and nothing else", async () => {
  const folder = await Deno.makeTempDir();
  try {
    await Deno.writeTextFile(`${folder}/index.html`, "<p>page</p>");
    await Deno.writeTextFile(`${folder}/page.js`, "1");
    await withServer(async ({ base }) => {
      const page = await fetch(base);
      assertEquals(await page.text(), "<p>page</p>");
      const policy = page.headers.get("content-security-policy")!;
      assert(policy.startsWith("default-src 'none'; script-src 'self'"));
      const script = await fetch(`${base}/page.js`);
      assertEquals(await script.text(), "1");
      const type = script.headers.get("content-type")!;
      assert(type.startsWith("text/javascript"));
      const other = await fetch(`${base}/%2e%2e/mod.ts`);
      assertEquals(other.status, 404);
      await errorOf(other);
    }, { page: folder });
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("metrics and the log tell of requests, and never what they say", async () => {
  await withServer(async ({ post, metric, log, base }) => {
    const messages = [{
      role: "user",
      content: `A secret word and ${"more of it ".repeat(30)}`,
    }];
    for (const stream of [false, true]) {
      const response = await post(CHAT, chat({ messages, stream }));
      await response.text();
    }
    await (await post(CHAT, { secret: "word" })).text();
    const count = (status: number) =>
      metric(`moela_requests_total{endpoint="${CHAT}",status="${status}"}`);
    assertEquals([await count(200), await count(400)], [2, 1]);
    const tokens = await metric("moela_completion_tokens_total");
    assert(tokens > 0 && tokens <= 8);
    assertEquals(
      await metric("moela_time_to_first_token_seconds_count"),
      2,
    );
    assertEquals(
      await metric("moela_time_between_tokens_seconds_count"),
      tokens - 2,
    );
    const buckets = 'moela_time_to_first_token_seconds_bucket{le="+Inf"}';
    assertEquals(await metric(buckets), 2);
    assertEquals(await metric("moela_prefix_hits_total"), 1);
    assert(await metric("moela_prompt_tokens_cached_total") >= 64);
    assert(await metric('moela_memory_bytes{use="prefixCache"}') > 0);
    assertEquals(await metric("moela_requests_active"), 0);
    const page = await (await fetch(`${base}/metrics`)).text();
    for (const line of page.trim().split("\n")) {
      assert(/^(# (HELP|TYPE) moela_\w+ .+|moela_\w+({.+})? \S+)$/.test(line));
    }
    const posts = log.filter(({ method }) => method === "POST");
    assertEquals(posts.map(({ status }) => status), [200, 200, 400]);
    assertEquals(posts[1].stream, true);
    assert(posts[1].cachedTokens! >= 64);
    assert(!JSON.stringify(log).includes("secret"));
  });
});
