/**
 * Load on the server: 200 clients at once, each a stream of 64 tokens, over loopback. Compares the
 * processor time of the server's process for a token with that of `generate()` in a process without
 * a server, and looks at caches and memory after half the clients have left in the middle. Exits
 * with 1 when a stream fails, the ratio is above 1.25, caches stay behind, or memory grows.
 *
 * Usage: deno run -A bench/server_load.ts [--model models/nano] [--streams 200] [--tokens 64]
 *   [--rounds 3]
 */
import { parseArgs } from "node:util";
import process from "node:process";
import { createHandler, loadModel, type Model } from "../mod.ts";

const { values } = parseArgs({
  args: Deno.args,
  options: {
    model: { type: "string", default: "models/nano" },
    streams: { type: "string", default: "200" },
    tokens: { type: "string", default: "64" },
    rounds: { type: "string", default: "3" },
    role: { type: "string", default: "client" },
  },
});
const streams = Number(values.streams);
const tokens = Number(values.tokens);
const rounds = Number(values.rounds);
const MAX_RATIO = 1.25;
/** MiB. */
const MAX_GROWN = 16;

/** What a process has used. */
interface Use {
  /** Seconds of processor time, of all threads. */
  cpu: number;
  /** Bytes of resident memory. */
  rss: number;
}

function use(): Use {
  const { user, system } = process.cpuUsage();
  return { cpu: (user + system) / 1e6, rss: process.memoryUsage().rss };
}

const question = (i: number, round: number) =>
  `Question ${round}.${i}: what is ${i} + ${
    (i * 7) % 90
  }, and what would a child say of it?`;

const load = () =>
  loadModel(values.model, {
    cacheBytes: 128 << 20,
    // Full from the first round on: so memory can be compared.
    prefixCacheBytes: 2 << 20,
    maxBatch: 256,
  });

/** One round of all requests without a server. */
async function generateAll(model: Model, round: number) {
  await Promise.all(Array.from({ length: streams }, async (_, i) => {
    const content = question(i, round);
    const generation = model.generate([{ role: "user", content }], {
      maxTokens: tokens,
      seed: i,
      ignoreEos: true,
    });
    let length = 0;
    for await (const { text } of generation) length += text.length;
    if (length === 0) throw new Error("no text");
  }));
}

/** The process without a server: prints what each round took. */
async function generateRole() {
  await using model = await load();
  const lines = Deno.stdin.readable.getReader();
  for (let round = 0;; round++) {
    const { done } = await lines.read();
    if (done) break;
    const before = use();
    const started = performance.now();
    await generateAll(model, round);
    const wall = (performance.now() - started) / 1000;
    console.log(JSON.stringify({ cpu: use().cpu - before.cpu, wall }));
  }
}

/** The process with a server: also tells what it uses. */
async function serveRole() {
  await using model = await load();
  const handler = createHandler(model, { modelId: "nano" });
  const server = Deno.serve(
    {
      hostname: "127.0.0.1",
      port: 0,
      onListen: ({ port }) => console.log(port),
    },
    (request) => {
      const { pathname } = new URL(request.url);
      // Else resident memory tells when V8 last felt like collecting.
      if (pathname === "/settled") (globalThis as { gc?: () => void }).gc?.();
      return ["/use", "/settled"].includes(pathname)
        ? Response.json(use())
        : handler(request);
    },
  );
  for await (const _ of Deno.stdin.readable);
  await server.shutdown();
}

/** A child in one of the roles, and what it prints. */
class Child {
  readonly #process: Deno.ChildProcess;
  readonly #input: WritableStreamDefaultWriter<Uint8Array>;
  readonly #output: ReadableStreamDefaultReader<string>;
  #rest = "";

  constructor(role: string) {
    this.#process = new Deno.Command(Deno.execPath(), {
      args: [
        "run",
        "-A",
        "--quiet",
        "--unstable-no-legacy-abort",
        "--v8-flags=--expose-gc",
        new URL(import.meta.url).pathname,
        ...["--role", role, "--model", values.model],
        ...["--streams", values.streams, "--tokens", values.tokens],
      ],
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    this.#input = this.#process.stdin.getWriter();
    this.#output = this.#process.stdout.pipeThrough(new TextDecoderStream())
      .getReader();
  }

  async line(): Promise<string> {
    while (!this.#rest.includes("\n")) {
      const { done, value } = await this.#output.read();
      if (done) throw new Error("a child has ended");
      this.#rest += value;
    }
    const end = this.#rest.indexOf("\n");
    const line = this.#rest.slice(0, end);
    this.#rest = this.#rest.slice(end + 1);
    return line;
  }

  async ask(): Promise<string> {
    await this.#input.write(new TextEncoder().encode("\n"));
    return await this.line();
  }

  async end() {
    await this.#input.close();
    await this.#output.cancel();
    await this.#process.status;
  }
}

interface StreamEnd {
  usage?: { completion_tokens: number };
  events: number;
}

/** One client: reads its stream to the end, or leaves after so many pieces of it. */
async function client(
  base: string,
  content: string,
  seed: number,
  leaveAfter = Infinity,
): Promise<StreamEnd> {
  const controller = new AbortController();
  const response = await fetch(`${base}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({
      model: "nano",
      messages: [{ role: "user", content }],
      max_tokens: tokens,
      seed,
      ignore_eos: true,
      stream: true,
      stream_options: { include_usage: true },
    }),
    signal: controller.signal,
  });
  if (response.status !== 200) throw new Error(await response.text());
  let text = "";
  let pieces = 0;
  try {
    const body = response.body!.pipeThrough(new TextDecoderStream());
    for await (const piece of body) {
      text += piece;
      if (++pieces >= leaveAfter) controller.abort();
    }
  } catch (error) {
    if (!controller.signal.aborted) throw error;
    return { events: 0 };
  }
  const events = text.split("\n\n").filter((event) => event !== "");
  if (events.at(-1) !== "data: [DONE]") {
    throw new Error(`A stream ended with ${events.at(-1)}`);
  }
  const last = JSON.parse(events.at(-2)!.slice("data: ".length));
  return { usage: last.usage, events: events.length };
}

async function metric(base: string, name: string): Promise<number> {
  const text = await (await fetch(`${base}/metrics`)).text();
  const line = text.split("\n").find((line) => line.startsWith(`${name} `));
  if (!line) throw new Error(`No metric ${name}`);
  return Number(line.slice(name.length));
}

const median = (list: number[]) =>
  list.toSorted((a, b) => a - b)[Math.floor(list.length / 2)];

interface Round {
  cpu: number;
  wall: number;
}

/** All clients at once. @throws when one of them fails */
async function serveAll(base: string, round: number): Promise<Round> {
  const before: Use = await (await fetch(`${base}/use`)).json();
  const started = performance.now();
  const ends = await Promise.all(
    Array.from(
      { length: streams },
      (_, i) => client(base, question(i, round), i),
    ),
  );
  const wall = (performance.now() - started) / 1000;
  const after: Use = await (await fetch(`${base}/use`)).json();
  const wrong = ends.find((end) => end.usage?.completion_tokens !== tokens);
  if (wrong) throw new Error(`A stream has ${JSON.stringify(wrong)}`);
  return { cpu: after.cpu - before.cpu, wall };
}

/** Half the clients leave in the middle, round after round. */
async function leaveHalf(base: string): Promise<boolean> {
  const names = [
    "moela_requests_active",
    'moela_engine_requests{state="running"}',
    'moela_engine_requests{state="waiting"}',
    'moela_memory_bytes{use="caches"}',
  ];
  let clean = true;
  const resident: number[] = [];
  for (let round = 0; round <= rounds; round++) {
    await Promise.all(
      Array.from(
        { length: streams },
        (_, i) =>
          client(base, question(i, 100 + round), i, i % 2 ? 2 : undefined),
      ),
    );
    let left: number[] = [];
    for (let tries = 0; tries < 50; tries++) {
      left = await Promise.all(names.map((name) => metric(base, name)));
      if (left.every((count) => count === 0)) break;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    clean &&= left.every((count) => count === 0);
    const { rss }: Use = await (await fetch(`${base}/settled`)).json();
    resident.push(Math.round(rss / 2 ** 20));
  }
  const gone = await metric(base, "moela_requests_aborted_total");
  console.log(
    `${gone} clients left in the middle of ${
      rounds + 1
    } rounds; requests and ` +
      `bytes of caches left behind: ${clean ? "none" : "some"}; resident MiB ` +
      `after each round: ${resident.join(", ")}`,
  );
  // The first rounds fill the prefix cache and V8's heap.
  const grown = resident[rounds] - resident[Math.floor(rounds / 2)];
  return clean && gone > 0 && grown <= MAX_GROWN;
}

async function clientRole(): Promise<boolean> {
  const alone = new Child("generate");
  const server = new Child("serve");
  const base = `http://127.0.0.1:${await server.line()}`;
  const count = streams * tokens;
  const without: Round[] = [], within: Round[] = [];
  // Round 0 warms up.
  for (let round = 0; round <= rounds; round++) {
    const one: Round = JSON.parse(await alone.ask());
    const other = await serveAll(base, round);
    if (round === 0) continue;
    without.push(one);
    within.push(other);
  }
  await alone.end();
  const cpu = (list: Round[]) =>
    median(list.map((round) => round.cpu / count * 1e6));
  const rate = (list: Round[]) => median(list.map(({ wall }) => count / wall));
  const ratio = cpu(within) / cpu(without);
  console.log(
    `${streams} streams of ${tokens} tokens, ${rounds} rounds, none failed\n` +
      `generate(): ${cpu(without).toFixed(1)} µs of processor time a token, ${
        rate(without).toFixed(0)
      } tokens/s\n` +
      `server:     ${cpu(within).toFixed(1)} µs of processor time a token, ${
        rate(within).toFixed(0)
      } tokens/s (clients on the same processor)\n` +
      `ratio ${ratio.toFixed(3)}, allowed ${MAX_RATIO}`,
  );
  const clean = await leaveHalf(base);
  await server.end();
  return ratio <= MAX_RATIO && clean;
}

if (values.role === "generate") await generateRole();
else if (values.role === "serve") await serveRole();
else if (!await clientRole()) Deno.exit(1);
