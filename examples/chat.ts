/**
 * A conversation in the terminal. Its cache holds what was said, so an answer pays only for what is
 * new. Ctrl-C stops an answer, or leaves when none is running; `/new` starts over.
 *
 * Run: deno run --allow-read --allow-ffi=build examples/chat.ts
 *
 * Usage: chat.ts [--model FOLDER] [--temperature T] [--seed N] [--system TEXT]
 */
import { parseArgs } from "node:util";
import {
  type Cache,
  type GenerateOptions,
  loadModel,
  type Message,
  type Model,
} from "../mod.ts";

const utf8 = new TextEncoder();
const write = (text: string) => Deno.stdout.writeSync(utf8.encode(text));

/** A line of its own on the terminal's stderr; nothing where there is none. */
function status(text: string) {
  if (!Deno.stderr.isTerminal()) return;
  Deno.stderr.writeSync(utf8.encode(`\r\x1b[K\x1b[2m${text}\x1b[0m`));
}

/** Lines of the standard input, typed or piped. */
async function* readLines(): AsyncGenerator<string> {
  let rest = "";
  const texts = Deno.stdin.readable.pipeThrough(new TextDecoderStream());
  for await (const text of texts) {
    const lines = (rest + text).split("\n");
    rest = lines.pop() ?? "";
    yield* lines;
  }
  if (rest !== "") yield rest;
}

/** Streams the answer to the conversation, and returns it as a message. */
async function answer(
  model: Model,
  messages: readonly Message[],
  options: GenerateOptions & { cache: Cache },
): Promise<Message> {
  const generation = model.generate(messages, options);
  // Ends the loop below; what was said until then stays.
  const stop = () => void generation.return?.();
  Deno.addSignalListener("SIGINT", stop);
  try {
    // Answers begin with a space where the template ends without one.
    let begun = false;
    for await (const { text } of generation) {
      write(begun ? text : text.trimStart());
      begun ||= text.trim() !== "";
    }
  } finally {
    Deno.removeSignalListener("SIGINT", stop);
  }
  write("\n");
  const { message, usage, timings } = await generation.result();
  const { completionTokens: count } = usage;
  // The first one came with the prompt.
  const rate = count > 1 ? (count - 1) / (timings.decodeMs / 1000) : 0;
  const { cache } = options;
  status(
    `${count} tokens, ${rate.toFixed(0)} tokens a second; ` +
      `the cache has ${cache.length} tokens in ${cache.bytes} bytes\n`,
  );
  return message;
}

async function main() {
  const { values } = parseArgs({
    args: Deno.args,
    options: {
      model: { type: "string" },
      temperature: { type: "string" },
      seed: { type: "string" },
      system: { type: "string" },
    },
  });
  const folder = values.model ?? new URL("../models/nano", import.meta.url);
  const number = (name: "temperature" | "seed") => {
    const text = values[name];
    if (text === undefined) return undefined;
    if (/^\d+(\.\d+)?$/.test(text)) return Number(text);
    throw new RangeError(
      `--${name} is "${text}", and must be a number of at least 0`,
    );
  };
  const options = { temperature: number("temperature"), seed: number("seed") };
  const system: Message[] = values.system === undefined
    ? []
    : [{ role: "system", content: values.system }];

  await using model = await loadModel(folder, {
    onProgress({ stage, loaded, total }) {
      status(`${stage} ${Math.round(100 * loaded / total)} %`);
    },
  });
  status("");
  await using cache = model.createCache();
  const prompt = () => Deno.stdin.isTerminal() && write("> ");
  let messages = system.slice();
  prompt();
  for await (const line of readLines()) {
    const content = line.trim();
    if (content === "/new") {
      // Nothing to clear: the next call keeps what its prompt shares with the cache.
      messages = system.slice();
    } else if (content !== "") {
      messages.push({ role: "user", content });
      const { length } = model.tokenizer.encode(messages);
      if (length < cache.capacity) {
        messages.push(await answer(model, messages, { ...options, cache }));
      } else {
        messages.pop();
        console.error(
          `Too long: ${length} tokens, and at most ${cache.capacity} fit with an answer; /new starts over`,
        );
      }
    }
    prompt();
  }
}

try {
  await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  Deno.exit(1);
}
