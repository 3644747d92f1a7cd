/** The server's own process: how it starts, and how it stops on SIGTERM. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { errorOf, until } from "./support/server.ts";

const ROOT = new URL("../", import.meta.url).pathname;

interface Serving {
  base: string;
  child: Deno.ChildProcess;
  /** What it has written to its output and to stderr. */
  text(): string;
}

/** Starts it with the permissions of `deno task serve`, and waits until it listens. */
async function serve(...args: string[]): Promise<Serving> {
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "--quiet", "--no-prompt", "--unstable-no-legacy-abort"],
      ...["--allow-read", "--allow-ffi=build", "--allow-net"],
      ...["src/server/main.ts", "--port", "0", ...args],
    ],
    cwd: ROOT,
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  let text = "";
  const read = async (stream: ReadableStream<Uint8Array>) => {
    const pieces = stream.pipeThrough(new TextDecoderStream());
    for await (const piece of pieces) text += piece;
  };
  const streams = Promise.all([read(child.stdout), read(child.stderr)]);
  streams.catch(() => {});
  const address = () => /Listening on (http:\S+?)\/\n/.exec(text)?.[1];
  const end = performance.now() + 20_000;
  while (!address()) {
    if (performance.now() > end) throw new Error(`It does not start: ${text}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return { base: address()!, child, text: () => text };
}

function ask(base: string, more: object): Promise<Response> {
  return fetch(`${base}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", connection: "close" },
    body: JSON.stringify({
      model: "nano",
      prompt: "Once",
      stream: true,
      ignore_eos: true,
      ...more,
    }),
  });
}

/** What a stream says, until it ends or breaks. */
async function events(response: Response): Promise<string[]> {
  return (await response.text()).trim().split("\n\n")
    .map((event) => event.slice("data: ".length));
}

Deno.test("SIGTERM lets requests finish, answers others with 503, and ends the process", async () => {
  const { base, child, text } = await serve("--drain", "20");
  const running = await ask(base, { max_tokens: 1500 });
  child.kill("SIGTERM");
  await until(() => text().includes("Stopping"), "it stops");
  const health = await fetch(`${base}/health`);
  assertEquals(health.status, 503);
  assertEquals((await health.json()).status, "draining");
  const refused = await ask(base, { max_tokens: 1 });
  assertEquals([refused.status, (await errorOf(refused)).code], [
    503,
    "stopping",
  ]);
  const list = await events(running);
  assertEquals(list.at(-1), "[DONE]");
  assertEquals(JSON.parse(list.at(-2)!).choices[0].finish_reason, "length");
  const { code } = await child.status;
  assertEquals(code, 0);
  await assertRejects(() => fetch(`${base}/health`));
  const entries = text().split("\n").filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line));
  assert(entries.some((entry) => entry.completionTokens === 1500));
  assert(entries.some((entry) => entry.code === "stopping"));
});

Deno.test("SIGTERM cuts what is left at the deadline", async () => {
  const { base, child } = await serve("--drain", "1", "--quiet");
  const running = await ask(base, { max_tokens: 8000 });
  const started = performance.now();
  child.kill("SIGTERM");
  const list = await events(running);
  const last = JSON.parse(list.at(-1)!);
  const waited = performance.now() - started;
  // Where the machine is fast it may have been done.
  if (last.error) {
    assertEquals(last.error.code, "stopping");
    assert(waited > 900);
  } else assertEquals(list.at(-1), "[DONE]");
  assert(waited < 5000);
  assertEquals((await child.status).code, 0);
});

Deno.test("serve says what is wrong with its arguments", async () => {
  const fails = async (...args: string[]) => {
    const { code, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "--quiet", "-A", "src/server/main.ts", ...args],
      cwd: ROOT,
    }).output();
    assertEquals(code, 1);
    return new TextDecoder().decode(stderr);
  };
  assert((await fails("--port", "x")).includes('--port is "x"'));
  assert((await fails("models/none")).includes("models/none"));
});
