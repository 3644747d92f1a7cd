/** The chat page's parts that need no browser. */
import { assert, assertEquals } from "@std/assert";
import {
  History,
  parseMetrics,
  readMetrics,
  WINDOW,
} from "../src/server/page/metrics.ts";
import { requestBody } from "../src/server/page/chat_api.ts";
import { schemaProblem } from "../src/server/page/settings.ts";
import { eventData } from "../src/server/page/sse.ts";
import {
  addTurn,
  branches,
  newConversation,
  path,
  pathTo,
  showBeside,
  titleOf,
} from "../src/server/page/tree.ts";
import type { Settings } from "../src/server/page/types.ts";
import { bundlePage } from "../src/server/page_bundle.ts";
import { inFolder } from "./support/folder.ts";

const SETTINGS: Settings = {
  system: "",
  sampling: {},
  format: "text",
  schema: "{}",
  probabilities: false,
};

Deno.test("path() follows the branches that are shown", () => {
  const chat = newConversation(SETTINGS);
  const add = (parent: string, role: "user" | "assistant", text: string) =>
    addTurn(chat, { parent, role, text });
  const shown = () => path(chat).map(({ text }) => text).join(" ");
  const a = add("", "user", "a");
  const b = add(a.id, "assistant", "b");
  const c = add(b.id, "user", "c");
  add(c.id, "assistant", "d");
  assertEquals(shown(), "a b c d");
  const other = add(b.id, "user", "C");
  assertEquals(shown(), "a b C");
  add(other.id, "assistant", "D");
  const again = add(a.id, "assistant", "B");
  assertEquals(shown(), "a B");
  showBeside(chat, again, 1);
  assertEquals(shown(), "a B");
  showBeside(chat, again, -1);
  assertEquals(shown(), "a b C D");
  showBeside(chat, other, -1);
  assertEquals(shown(), "a b c d");
  assertEquals(branches(chat, b.id).map(({ text }) => text), ["c", "C"]);
  assertEquals(pathTo(chat, other.id).map(({ text }) => text), ["a", "b", "C"]);
  assertEquals(chat.title, "a");
});

Deno.test("titleOf() takes the first words", () => {
  assertEquals(titleOf("  What is\n 12 + 30? "), "What is 12 + 30?");
  assertEquals(
    titleOf("word ".repeat(30)),
    "word word word word word word word word word…",
  );
  assertEquals(titleOf("x".repeat(60)), `${"x".repeat(48)}…`);
  assertEquals(titleOf(`${"x".repeat(47)}😀😀`), `${"x".repeat(47)}…`);
});

Deno.test("eventData() finds events however the bytes are cut", async () => {
  const text = 'data: {"a":"é"}\n\ndata: two\r\n\r\n: comment\n\ndata: [DONE]';
  const bytes = new TextEncoder().encode(text);
  for (const size of [1, 2, 5, 1000]) {
    const pieces: Uint8Array<ArrayBuffer>[] = [];
    for (let at = 0; at < bytes.length; at += size) {
      pieces.push(bytes.slice(at, at + size));
    }
    const found: string[] = [];
    for await (const data of eventData(ReadableStream.from(pieces))) {
      found.push(data);
    }
    assertEquals(found, ['{"a":"é"}', "two", "[DONE]"]);
  }
});

Deno.test("eventData() leaves the stream where its reader leaves", async () => {
  let left = false;
  const body = new ReadableStream<Uint8Array>({
    pull: (controller) =>
      controller.enqueue(new TextEncoder().encode("data: x\n\n")),
    cancel: () => {
      left = true;
    },
  });
  for await (const data of eventData(body)) {
    assertEquals(data, "x");
    break;
  }
  assert(left);
});

Deno.test("requestBody() says what the settings say", () => {
  const turns = [{ id: "1", parent: "", role: "user", text: "Hi" }] as const;
  assertEquals(requestBody(turns, SETTINGS, 7), {
    messages: [{ role: "user", content: "Hi" }],
    seed: 7,
    stream: true,
    stream_options: { include_usage: true },
  });
  const body = requestBody(turns, {
    system: "Sums.",
    sampling: { temperature: 0, stop: ["."], seed: 3 },
    format: "json_schema",
    schema: '{"type":"object"}',
    probabilities: true,
  }, 3);
  assertEquals(body.messages, [
    { role: "system", content: "Sums." },
    { role: "user", content: "Hi" },
  ]);
  assertEquals([body.temperature, body.seed, body.stop], [0, 3, ["."]]);
  assertEquals([body.logprobs, body.top_logprobs], [true, 8]);
  assertEquals(body.response_format, {
    type: "json_schema",
    json_schema: { name: "answer", schema: { type: "object" } },
  });
});

Deno.test("schemaProblem() tells what is wrong", () => {
  assertEquals(schemaProblem('{"type":"object"}'), undefined);
  assertEquals(schemaProblem("[]"), "A schema must be a JSON object");
  assert(schemaProblem("{")?.startsWith("This is not JSON: "));
});

Deno.test("History gives tokens a second over the last minute", () => {
  const history = new History();
  const at = (time: number, tokens: number) =>
    history.add({ time, tokens, cacheBytes: tokens * 1e6 });
  at(100, 10);
  at(102, 30);
  at(103, 30);
  assertEquals(history.columns(), [
    [100, 102, 103],
    [null, 10, 0],
    [10, 30, 30],
  ]);
  at(103 + WINDOW, 31);
  assertEquals(history.columns()[0], [103, 103 + WINDOW]);
  // Started anew.
  at(104 + WINDOW, 5);
  assertEquals(history.columns(), [[104 + WINDOW], [null], [5]]);
});

Deno.test("readMetrics() reads what the server writes", () => {
  const text = `# HELP moela_completion_tokens_total Tokens generated.
# TYPE moela_completion_tokens_total counter
moela_completion_tokens_total 42
moela_memory_bytes{use="weights"} 1000
moela_memory_bytes{use="caches"} 20
moela_memory_bytes{use="prefixCache"} 3
`;
  assertEquals(parseMetrics(text).get('moela_memory_bytes{use="caches"}'), 20);
  assertEquals(readMetrics(text, 9), { time: 9, tokens: 42, cacheBytes: 23 });
});

Deno.test("bundlePage() makes the page, and nothing when it is current", async () => {
  await inFolder(async (folder) => {
    const out = new URL(`file://${folder}/`);
    await bundlePage(out);
    const names = [...Deno.readDirSync(new URL("page/", out))]
      .map(({ name }) => name).sort();
    assertEquals(names, [
      "icon.svg",
      "index.html",
      "page.css",
      "page.js",
      "theme.js",
    ]);
    const script = new URL("page/page.js", out);
    const { mtime } = await Deno.stat(script);
    await bundlePage(out);
    assertEquals((await Deno.stat(script)).mtime, mtime);
    // All that the policy would refuse.
    const html = await Deno.readTextFile(new URL("page/index.html", out));
    assert(!/<style|\sstyle=|\son\w+=|<script(?![^>]* src=)/.test(html));
    assert(!/https?:/.test(html));
    const css = await Deno.readTextFile(new URL("page/page.css", out));
    assert(!/@import|url\(/.test(css));
  });
});
