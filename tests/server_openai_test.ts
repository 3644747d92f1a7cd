/** The official client of OpenAI, as it is, against a server of nano. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import OpenAI, {
  APIUserAbortError,
  AuthenticationError,
  BadRequestError,
  InternalServerError,
  NotFoundError,
  RateLimitError,
} from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { openLibraries } from "./support/open_library.ts";
import { until, withServer } from "./support/server.ts";

openLibraries();

const model = "nano";
/** For text that must be the reference's: bf16 is rounded otherwise on another device. */
const IN_F32 = { weights: "f32" } as const;
const SUM = [{ role: "user" as const, content: "What is 12 + 30?" }];

interface Nano {
  prompts: Record<string, { text: string; greedy_text: string }>;
}
const nano: Nano = JSON.parse(
  await Deno.readTextFile(
    new URL("fixtures/nano/nano.json", import.meta.url),
  ),
);

/** Every chunk of a stream. */
async function collect<T>(stream: AsyncIterable<T>): Promise<T[]> {
  const list: T[] = [];
  for await (const each of stream) list.push(each);
  return list;
}

Deno.test("openai client lists and retrieves the model", async () => {
  await withServer(async ({ client }) => {
    const models = await client.models.list();
    assertEquals(models.data.map(({ id }) => id), ["nano"]);
    assertEquals((await client.models.retrieve("nano")).object, "model");
    await assertRejects(() => client.models.retrieve("other"), NotFoundError);
  });
});

Deno.test("openai client chats", async () => {
  await withServer(async ({ client, log }) => {
    const answer = await client.chat.completions.create({
      model,
      messages: SUM,
      temperature: 0,
    });
    assertEquals(answer.object, "chat.completion");
    assertEquals(answer.choices.length, 1);
    const [{ message, finish_reason, logprobs }] = answer.choices;
    assertEquals(message.content, "42");
    assertEquals(message.role, "assistant");
    assertEquals([finish_reason, logprobs], ["stop", null]);
    const usage = answer.usage!;
    assertEquals(
      usage.total_tokens,
      usage.prompt_tokens + usage.completion_tokens,
    );
    assertEquals(log.length, 1);
    assertEquals(log[0].completionTokens, usage.completion_tokens);
    assert(!JSON.stringify(log).includes("12 + 30"));
  });
});

Deno.test("openai client streams a chat", async () => {
  await withServer(async ({ client }) => {
    const chunks = await collect(
      await client.chat.completions.create({
        model,
        messages: SUM,
        temperature: 0,
        stream: true,
        stream_options: { include_usage: true },
      }),
    );
    assertEquals(chunks[0].choices[0].delta.role, "assistant");
    const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "");
    assertEquals(text.join(""), "42");
    const reasons = chunks.flatMap(({ choices }) => choices)
      .map((choice) => choice.finish_reason).filter((reason) => reason);
    assertEquals(reasons, ["stop"]);
    const last = chunks.at(-1)!;
    assertEquals(last.choices, []);
    assert(last.usage!.completion_tokens > 0);
    assertEquals(new Set(chunks.map(({ id }) => id)).size, 1);
  });
});

Deno.test("openai client's stream helper gives the whole message", async () => {
  await withServer(async ({ client }) => {
    const stream = client.chat.completions.stream({
      model,
      messages: SUM,
      temperature: 0,
    });
    assertEquals((await stream.finalMessage()).content, "42");
  });
});

Deno.test("openai client completes text, as the reference does", async () => {
  await withServer(
    async ({ client, model: { tokenizer } }) => {
      const { text, greedy_text } = nano.prompts.story;
      const max_tokens = tokenizer.encode(greedy_text, {
        addSpecialTokens: false,
      }).length;
      const answer = await client.completions.create({
        model,
        prompt: text,
        temperature: 0,
        max_tokens,
      });
      assertEquals(answer.choices[0].text, greedy_text);
      assertEquals(answer.choices[0].finish_reason, "length");
      const chunks = await collect(
        await client.completions.create({
          model,
          prompt: text,
          temperature: 0,
          max_tokens,
          stream: true,
        }),
      );
      const streamed = chunks.map((chunk) => chunk.choices[0].text).join("");
      assertEquals(streamed, greedy_text);
    },
    {},
    IN_F32,
  );
});

Deno.test("openai client gets n choices, seeded seed + i", async () => {
  await withServer(async ({ client }) => {
    const ask = (seed: number, n: number) =>
      client.completions.create({
        model,
        prompt: "The little bear",
        temperature: 1,
        max_tokens: 12,
        seed,
        n,
      });
    const texts = (await ask(7, 3)).choices.map((choice) => choice.text);
    assertEquals(new Set(texts).size, 3);
    for (const [i, text] of texts.entries()) {
      assertEquals((await ask(7 + i, 1)).choices[0].text, text);
    }
  });
});

Deno.test("openai client stops at strings, and biases and penalizes tokens", async () => {
  await withServer(async ({ client, model: { tokenizer } }) => {
    const ask = async (more: object) =>
      (await client.completions.create({
        model,
        prompt: nano.prompts.story.text,
        temperature: 0,
        max_tokens: 24,
        ...more,
      })).choices[0];
    const plain = (await ask({})).text;
    const word = plain.trim().split(" ")[2];
    const stopped = await ask({ stop: [word, "never"] });
    assertEquals(stopped.text, plain.slice(0, plain.indexOf(word)));
    assertEquals(stopped.finish_reason, "stop");
    const [id] = tokenizer.encode(" bear", { addSpecialTokens: false });
    const biased = await ask({ logit_bias: { [id]: 100 }, max_tokens: 3 });
    assertEquals(biased.text, tokenizer.decode([id, id, id]));
    const [first] = tokenizer.encode(plain, { addSpecialTokens: false });
    const banned = await ask({ logit_bias: { [first]: -100 } });
    assert(!banned.text.startsWith(tokenizer.decode([first])));
    const penalized = await ask({ frequency_penalty: 2, presence_penalty: 2 });
    assert(penalized.text !== plain);
  });
});

Deno.test("openai client gets log-probabilities of a chat, whole and streamed", async () => {
  await withServer(async ({ client }) => {
    const options = {
      model,
      messages: SUM,
      temperature: 0,
      logprobs: true,
      top_logprobs: 3,
    };
    const { choices: [choice] } = await client.chat.completions.create(options);
    const content = choice.logprobs!.content!;
    assertEquals(
      content.map(({ token }) => token).join("").trim(),
      choice.message.content,
    );
    for (const { token, bytes, logprob, top_logprobs } of content) {
      assertEquals(new TextDecoder().decode(new Uint8Array(bytes!)), token);
      assert(logprob <= 0);
      assertEquals(top_logprobs.length, 3);
      assertEquals(top_logprobs[0], { token, bytes, logprob });
    }
    const chunks = await collect(
      await client.chat.completions.create({ ...options, stream: true }),
    );
    const streamed = chunks.flatMap((chunk) =>
      chunk.choices[0].logprobs?.content ?? []
    );
    assertEquals(streamed, content);
  });
});

Deno.test("openai client gets log-probabilities of an echoed prompt, as score() gives them", async () => {
  await withServer(async ({ client, model: loaded }) => {
    const prompt = "Once upon a time there was";
    const { choices: [choice] } = await client.completions.create({
      model,
      prompt,
      echo: true,
      logprobs: 2,
      max_tokens: 0,
    });
    assertEquals(choice.text, prompt);
    const { tokens, token_logprobs, top_logprobs, text_offset } = choice
      .logprobs!;
    assertEquals(tokens!.join(""), prompt);
    const scores = await loaded.score(loaded.tokenizer.encode(prompt));
    assertEquals(token_logprobs!.length, scores.length);
    for (const [i, score] of scores.entries()) {
      assert(Math.abs(token_logprobs![i] - score) < 1e-4);
      const best = Object.values(top_logprobs![i]);
      assertEquals(best.length, 2);
      assert(Math.max(...best) >= token_logprobs![i] - 1e-4);
    }
    assertEquals(
      text_offset,
      tokens!.map((_, i) => tokens!.slice(0, i).join("").length),
    );
  });
});

Deno.test("openai client parses a zod schema's object", async () => {
  await withServer(async ({ client }) => {
    const Person = z.object({
      name: z.string().max(12),
      age: z.number().int().min(0).max(150),
      pet: z.enum(["cat", "dog"]).nullable(),
      tags: z.array(z.string().max(5)).max(2),
    });
    const { choices: [{ message }] } = await client.chat.completions.parse({
      model,
      messages: [{ role: "user", content: "Who is it?" }],
      response_format: zodResponseFormat(Person, "person"),
      seed: 3,
    });
    assertEquals(Person.parse(message.parsed), message.parsed);
  });
});

Deno.test("openai client gets an object with json_object", async () => {
  await withServer(async ({ client }) => {
    const { choices: [choice] } = await client.chat.completions.create({
      model,
      messages: [{ role: "user", content: "Give me a JSON object." }],
      response_format: { type: "json_object" },
      temperature: 0,
      max_tokens: 200,
    });
    if (choice.finish_reason === "stop") {
      assertEquals(typeof JSON.parse(choice.message.content!), "object");
    } else assert(choice.message.content!.startsWith("{"));
  });
});

Deno.test("openai client aborts a stream, and the generation ends", async () => {
  await withServer(async ({ client, model: loaded, metric }) => {
    const stream = await client.chat.completions.create({
      model,
      messages: SUM,
      max_tokens: 4000,
      stream: true,
      ...{ ignore_eos: true },
    });
    for await (const _ of stream) break; // the client closes the connection
    await until(() => loaded.load.running === 0, "the engine is idle");
    assertEquals(loaded.memory().caches, 0);
    assertEquals(await metric("moela_requests_aborted_total"), 1);
  });
});

Deno.test("openai client aborts a request, and the generation ends", async () => {
  await withServer(async ({ client, model: loaded }) => {
    const controller = new AbortController();
    const asked = client.chat.completions.create({
      model,
      messages: SUM,
      max_tokens: 4000,
      ...{ ignore_eos: true },
    }, { signal: controller.signal });
    await until(() => loaded.load.running === 1, "the engine runs");
    controller.abort();
    await assertRejects(() => asked, APIUserAbortError);
    await until(() => loaded.load.running === 0, "the engine is idle");
  });
});

Deno.test("openai client throws its errors by class", async () => {
  const options = { apiKeys: ["right", "also"], maxConcurrent: 1, maxQueue: 0 };
  await withServer(async ({ client, base, handler, model: loaded }) => {
    const ask = (asked: OpenAI, more: object = {}) =>
      asked.chat.completions.create({ model, messages: SUM, ...more });
    const wrong = new OpenAI({
      baseURL: `${base}/v1`,
      apiKey: "wrong",
      maxRetries: 0,
      defaultHeaders: { connection: "close" },
    });
    const refused = await assertRejects(() => ask(wrong), AuthenticationError);
    assertEquals(refused.code, "invalid_api_key");
    assertEquals(refused.status, 401);
    const bad = await assertRejects(
      () => ask(client, { temperature: 3 }),
      BadRequestError,
    );
    assertEquals([bad.param, bad.type], [
      "temperature",
      "invalid_request_error",
    ]);
    assert(bad.requestID?.startsWith("req_"));
    const absent = await assertRejects(
      () => ask(client, { model: "gpt-4" }),
      NotFoundError,
    );
    assertEquals(absent.code, "model_not_found");
    const long = await assertRejects(
      () =>
        ask(client, {
          messages: [{ role: "user", content: "bear ".repeat(9000) }],
        }),
      BadRequestError,
    );
    assertEquals(long.code, "context_length_exceeded");

    const running = ask(client, { max_tokens: 2000, ignore_eos: true });
    await until(() => loaded.load.running === 1, "the engine runs");
    const full = await assertRejects(() => ask(client), RateLimitError);
    assertEquals(full.headers.get("retry-after"), "1");
    assertEquals(full.code, "queue_full");
    const drained = handler.drain({ timeoutMs: 0 });
    const cut = await assertRejects(() => running, InternalServerError);
    assertEquals([cut.status, cut.code], [503, "stopping"]);
    await drained;
    await assertRejects(() => ask(client), InternalServerError);
  }, options);
});
