/**
 * `deno task serve`: serves a model to OpenAI's clients, and a chat page at `/`.
 *
 * Usage: deno task serve [MODEL] [options]; `--help` lists them.
 */
import { parseArgs } from "node:util";
import { basename, resolve } from "node:path";
import { createHandler, loadModel, type LoadOptions } from "../../mod.ts";
import { jsonLog } from "./log.ts";

const USAGE = `Usage: deno task serve [MODEL] [options]
  MODEL               folder of a checkpoint (models/nano)
  --host ADDRESS      address to listen on (127.0.0.1)
  --port N            (8000)
  --name NAME         the model's name for clients (the folder's)
  --api-keys FILE     keys that open /v1/, one a line (none: open)
  --cors ORIGIN       origin of a page that may call the server; may be repeated
  --allow-host NAME   further Host that requests may name; may be repeated
  --max-concurrent N  generations at once (256)
  --max-queue N       requests that may wait (256)
  --max-tokens N      tokens of one choice at most (the context)
  --max-prompt N      tokens of a prompt at most (the context)
  --timeout SECONDS   for a whole request (600)
  --drain SECONDS     for what runs when SIGTERM comes (25)
  --device NAME       auto, cpu, cuda, cuda:1 (auto)
  --weights TYPE      auto, f32, bf16, fp8, int8, int4 (auto)
  --cache-gb N        memory for caches (half of what is free)
  --quiet             log nothing but errors`;

/** Names under which a loopback address is reached. */
const LOOPBACK = ["127.0.0.1", "localhost", "[::1]"];

function whole(name: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  if (/^\d{1,9}$/.test(text)) return Number(text);
  throw new TypeError(`--${name} is "${text}", and must be a whole number`);
}

/** Lines of a file that are neither empty nor comments. */
async function readKeys(path: string | undefined): Promise<string[]> {
  if (path === undefined) return [];
  const lines = (await Deno.readTextFile(path)).split("\n");
  const keys = lines.map((line) => line.trim())
    .filter((line) => line !== "" && !line.startsWith("#"));
  if (keys.length > 0) return keys;
  throw new RangeError(`${path} has no key, and must have one at least`);
}

const options = {
  host: { type: "string", default: "127.0.0.1" },
  port: { type: "string", default: "8000" },
  name: { type: "string" },
  "api-keys": { type: "string" },
  cors: { type: "string", multiple: true },
  "allow-host": { type: "string", multiple: true },
  "max-concurrent": { type: "string" },
  "max-queue": { type: "string" },
  "max-tokens": { type: "string" },
  "max-prompt": { type: "string" },
  timeout: { type: "string" },
  drain: { type: "string", default: "25" },
  device: { type: "string" },
  weights: { type: "string" },
  "cache-gb": { type: "string" },
  quiet: { type: "boolean" },
  help: { type: "boolean" },
} as const;

async function main() {
  const { values, positionals: [path = "models/nano"] } = parseArgs({
    args: Deno.args,
    allowPositionals: true,
    options,
  });
  if (values.help) return console.log(USAGE);
  const number = (name: keyof typeof options) =>
    whole(name, values[name] as string | undefined);
  const apiKeys = await readKeys(values["api-keys"]);
  const seconds = number("timeout");
  const gigabytes = number("cache-gb");
  const write = jsonLog((line) => console.log(line));
  await using model = await loadModel(path, {
    device: values.device as LoadOptions["device"],
    weights: values.weights as LoadOptions["weights"],
    maxBatch: Math.min(number("max-concurrent") ?? 256, 512),
    cacheBytes: gigabytes === undefined ? undefined : gigabytes * 1e9,
  });
  const loopback = LOOPBACK.includes(values.host) || values.host === "::1";
  const hosts = values["allow-host"] ?? [];
  const handler = createHandler(model, {
    modelId: values.name ?? basename(resolve(path)),
    apiKeys,
    cors: values.cors,
    // A page of another site must not reach an open server by a name of its own for 127.0.0.1.
    hosts: loopback ? [...LOOPBACK, ...hosts] : hosts,
    maxConcurrent: number("max-concurrent"),
    maxQueue: number("max-queue"),
    maxTokens: number("max-tokens"),
    maxPromptTokens: number("max-prompt"),
    requestTimeoutMs: seconds === undefined ? undefined : seconds * 1000,
    page: new URL("../../build/page/", import.meta.url),
    log: (entry) => {
      if (!values.quiet || entry.level === "error") write(entry);
    },
  });
  const server = Deno.serve({
    hostname: values.host,
    port: number("port"),
    onListen: ({ hostname, port }) =>
      console.error(`Listening on http://${hostname}:${port}/`),
  }, handler);

  const stopped = Promise.withResolvers<void>();
  const stop = async () => {
    // A second signal ends the process at once.
    for (const signal of SIGNALS) Deno.removeSignalListener(signal, stop);
    console.error("Stopping");
    await handler.drain({ timeoutMs: number("drain")! * 1000 });
    // A client that reads no more of its answer is not waited for.
    const late = setTimeout(() => Deno.exit(0), 2000);
    await server.shutdown();
    clearTimeout(late);
    stopped.resolve();
  };
  for (const signal of SIGNALS) Deno.addSignalListener(signal, stop);
  await stopped.promise;
}

const SIGNALS = ["SIGTERM", "SIGINT"] as const;

if (import.meta.main) {
  try {
    await main();
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    Deno.exit(1);
  }
}
