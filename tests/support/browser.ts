/** A real browser with the chat page of a server of nano, for one test. */
import { type Browser, chromium, type Page } from "playwright-core";
import {
  createHandler,
  loadModel,
  type LogEntry,
  type Model,
  type ServerOptions,
} from "../../mod.ts";
import { CHAT } from "./server.ts";

/** Where Debian and others put Chromium. */
const PLACES = ["/usr/bin/chromium", "/usr/bin/chromium-browser"];

/** Whether the browser tests were asked for, as `deno task test:browser` does. */
export const wanted = Deno.env.get("MOELA_BROWSER") === "1";

const MODEL = new URL("../../models/nano", import.meta.url);
const PAGE = new URL("../../build/page/", import.meta.url);

/** What a test of the page has. */
export interface PageTest {
  page: Page;
  base: string;
  /** Errors of the page and of its console, and addresses asked that are not the server's. */
  complaints: string[];
  /** What the server logged. */
  log: LogEntry[];
  /** A number of `/metrics`. */
  metric(name: string): Promise<number>;
}

/** How a test has its page. */
export interface PageOptions {
  server?: ServerOptions;
  /** Answers in the server's place; what is no response goes on to the server. */
  intercept?: (request: Request) => Promise<Response | Request>;
  width?: number;
  height?: number;
  dark?: boolean;
}

async function launch(): Promise<Browser> {
  const executablePath = [Deno.env.get("CHROMIUM") ?? "", ...PLACES]
    .find((path) => path !== "" && exists(path));
  if (executablePath === undefined) {
    throw new Error(
      `Cannot run browser tests: Chromium is at none of ${
        PLACES.join(", ")
      }; install it (apt-get install chromium) or name it in CHROMIUM`,
    );
  }
  // The page is ours, and containers allow no sandbox.
  return await chromium.launch({ executablePath, args: ["--no-sandbox"] });
}

function exists(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

/** Both take a second to start: all tests share them. */
let shared: Promise<[Browser, Model]> | undefined;

if (wanted) {
  Deno.test.afterAll(async () => {
    if (shared === undefined) return;
    const [browser, model] = await shared;
    await browser.close();
    await model.dispose();
  });
}

/** Runs a test with a server, and the page in a context of its own: nothing is kept in it yet. */
async function withPage(
  test: (given: PageTest) => Promise<void>,
  { server: options, intercept, width = 1280, height = 800, dark = false }:
    PageOptions,
): Promise<void> {
  shared ??= Promise.all([
    launch(),
    loadModel(MODEL, { cacheBytes: 32 << 20 }),
  ]);
  const [browser, model] = await shared;
  const log: LogEntry[] = [];
  const handler = createHandler(model, {
    modelId: "nano",
    page: PAGE,
    log: (entry) => log.push(entry),
    ...options,
  });
  const server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    async (request) => {
      const given = await intercept?.(request) ?? request;
      return given instanceof Response ? given : await handler(given);
    },
  );
  const base = `http://127.0.0.1:${server.addr.port}`;
  const context = await browser.newContext({
    viewport: { width, height },
    colorScheme: dark ? "dark" : "light",
    reducedMotion: "reduce",
  });
  try {
    const page = await context.newPage();
    page.setDefaultTimeout(10_000);
    const complaints: string[] = [];
    page.on("pageerror", (error) => complaints.push(`${error}`));
    page.on("console", (message) => {
      // A status that a test asks for is told there as well.
      const text = message.text();
      if (message.type() === "error" && !text.startsWith("Failed to load")) {
        complaints.push(text);
      }
    });
    page.on("request", (request) => {
      const url = request.url();
      if (!url.startsWith(`${base}/`) && !url.startsWith("data:")) {
        complaints.push(`asked for ${url}`);
      }
    });
    await page.goto(`${base}/`);
    await test({
      page,
      base,
      complaints,
      log,
      metric: async (name) => {
        const text = await (await fetch(`${base}/metrics`)).text();
        const line = text.split("\n").find((each) =>
          each.startsWith(`${name} `)
        );
        return Number(line?.slice(name.length) ?? 0);
      },
    });
  } finally {
    await context.close();
    await handler.drain({ timeoutMs: 0 });
    await server.shutdown();
  }
}

/** A test of the page, ignored unless browser tests are {@linkcode wanted}. */
export function pageTest(
  name: string,
  test: (given: PageTest) => Promise<void>,
  options: PageOptions = {},
) {
  Deno.test({
    name: `the page ${name}`,
    ignore: !wanted,
    // The browser and the model outlive the test: others share them.
    sanitizeOps: false,
    sanitizeResources: false,
    fn: () => withPage(test, options),
  });
}

/** Types a message, sends it and waits for the end of the answer. */
export async function say(page: Page, text: string) {
  await page.fill("#message", text);
  await page.press("#message", "Enter");
  await answered(page);
}

/** Waits until no answer is being written. */
export async function answered(page: Page) {
  await page.locator('.assistant[aria-busy="false"]').last().waitFor();
  await page.locator("#send:not(.stop)").waitFor();
}

/** The texts of what matches, in order. */
export function texts(page: Page, selector: string): Promise<string[]> {
  return page.locator(selector).allInnerTexts();
}

/** Opens the settings and sets the temperature to 0. */
export async function greedy(page: Page) {
  await page.click("#settings-button");
  await page.fill("#sampling-temperature", "0");
}

/** A stream of an answer, as the chat endpoint sends it. */
export function streamOf(...pieces: string[]): Response {
  const chunk = (delta: unknown, finish_reason: string | null) =>
    `data: ${
      JSON.stringify({ choices: [{ index: 0, delta, finish_reason }] })
    }\n\n`;
  const body = [
    ...pieces.map((content) => chunk({ content }, null)),
    chunk({}, "stop"),
    "data: [DONE]\n\n",
  ].join("");
  return new Response(body, {
    headers: { "content-type": "text/event-stream" },
  });
}

/** Whether a request asks for an answer. */
export const isChat = (request: Request) =>
  new URL(request.url).pathname === CHAT;

/** Makes answers that end only when they are stopped. */
export async function endless(request: Request): Promise<Request> {
  if (!isChat(request)) return request;
  const body: Record<string, unknown> = await request.json();
  return new Request(request.url, {
    method: "POST",
    headers: request.headers,
    signal: request.signal,
    body: JSON.stringify({ ...body, ignore_eos: true }),
  });
}
