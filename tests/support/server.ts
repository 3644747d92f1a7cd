/** A server of nano on loopback, for one test. */

import { assertEquals } from "@std/assert";
import OpenAI from "openai";
import {
  createHandler,
  type Handler,
  loadModel,
  type LoadOptions,
  type LogEntry,
  type Model,
  type ServerOptions,
} from "../../mod.ts";

/** A server that runs. */
export interface TestServer {
  model: Model;
  handler: Handler;
  /** `http://127.0.0.1:PORT` */
  base: string;
  client: OpenAI;
  log: LogEntry[];
  /** Sends JSON, or what stands for it. */
  post(
    path: string,
    body: unknown,
    headers?: Record<string, string>,
  ): Promise<Response>;
  /** A number of `/metrics`, by its name and labels; 0 when there is none. */
  metric(name: string): Promise<number>;
}

const NANO = new URL("../../models/nano", import.meta.url);

/** Runs a test with a server, and stops it. */
export async function withServer(
  test: (server: TestServer) => Promise<void>,
  options: ServerOptions = {},
  { model: path = NANO, ...load }: LoadOptions & { model?: string | URL } = {},
): Promise<void> {
  await using model = await loadModel(path, { cacheBytes: 32 << 20, ...load });
  const log: LogEntry[] = [];
  const handler = createHandler(model, {
    modelId: "nano",
    log: (entry) => log.push(entry),
    ...options,
  });
  const server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    handler,
  );
  const base = `http://127.0.0.1:${server.addr.port}`;
  const client = new OpenAI({
    baseURL: `${base}/v1`,
    apiKey: options.apiKeys?.[0] ?? "none",
    maxRetries: 0,
    // A connection that is kept would outlive the test.
    defaultHeaders: { connection: "close" },
  });
  try {
    await test({
      model,
      handler,
      base,
      client,
      log,
      post: (path, body, headers = {}) =>
        fetch(base + path, {
          method: "POST",
          headers: {
            "content-type": "application/json",
            connection: "close",
            ...headers,
          },
          body: typeof body === "string" ? body : JSON.stringify(body),
        }),
      metric: async (name) => {
        const text = await (await fetch(`${base}/metrics`)).text();
        const line = text.split("\n").find((each) =>
          each.startsWith(`${name} `)
        );
        return Number(line?.slice(name.length) ?? 0);
      },
    });
  } finally {
    await handler.drain({ timeoutMs: 0 });
    await server.shutdown();
  }
}

/** Waits until something holds, at most so many seconds. */
export async function until(
  holds: () => boolean | Promise<boolean>,
  what: string,
  seconds = 2,
) {
  const end = performance.now() + 1000 * seconds;
  while (!await holds()) {
    if (performance.now() > end) throw new Error(`Never: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Checks that a response is an error in OpenAI's shape, and returns it. */
export async function errorOf(response: Response): Promise<{
  message: string;
  type: string;
  param: string | null;
  code: string | null;
}> {
  const body: unknown = await response.json();
  const { error } = body as { error?: Record<string, unknown> };
  const right = typeof error === "object" && error !== null &&
    typeof error.message === "string" && error.message !== "" &&
    typeof error.type === "string" &&
    (error.param === null || typeof error.param === "string") &&
    (error.code === null || typeof error.code === "string");
  if (!right) throw new Error(`Not an error: ${JSON.stringify(body)}`);
  return error as unknown as Awaited<ReturnType<typeof errorOf>>;
}

/** Where chats are asked. */
export const CHAT = "/v1/chat/completions";

/** Checks that the server answers as before, and holds nothing. */
export async function checkAlive({ post, model, metric }: TestServer) {
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
