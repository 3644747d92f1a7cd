/** Parts of the server by themselves. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { Lead } from "../src/server/choice.ts";
import { EventStream, Flusher } from "../src/server/event_stream.ts";
import { Gate } from "../src/server/gate.ts";
import { Counter, Histogram } from "../src/server/metrics.ts";

const never = new AbortController().signal;

Deno.test("Gate gives places in order of arrival", async () => {
  const gate = new Gate(3);
  const order: string[] = [];
  const enter = async (name: string, places: number) => {
    const leave = await gate.enter(places, never);
    order.push(name);
    return leave;
  };
  const a = await enter("a", 2);
  const b = enter("b", 2);
  const c = enter("c", 1); // would fit, but is behind b
  assertEquals([gate.taken, gate.waiting], [2, 2]);
  a();
  a();
  const leaves = await Promise.all([b, c]);
  assertEquals(order, ["a", "b", "c"]);
  assertEquals([gate.taken, gate.waiting], [3, 0]);
  for (const leave of leaves) leave();
  assertEquals(gate.taken, 0);
});

Deno.test("Gate lets go of who waits no longer", async () => {
  const gate = new Gate(2);
  const leave = await gate.enter(1, never);
  const controller = new AbortController();
  const large = gate.enter(2, controller.signal);
  const small = gate.enter(1, never);
  controller.abort(new Error("left"));
  await assertRejects(() => large, Error, "left");
  (await small)();
  leave();
  assertEquals([gate.taken, gate.waiting], [0, 0]);
  await assertRejects(() => gate.enter(1, controller.signal), Error, "left");
});

Deno.test("Lead leaves out what a template puts before answers", () => {
  const read = (lead: string, ...texts: string[]) => {
    const reader = new Lead(lead);
    return texts.map((text) => reader.push(text)).join("|") +
      `|${reader.flush()}`;
  };
  assertEquals(read(" ", " 42", " 43"), "42| 43|");
  assertEquals(read(" ", "", " ", "4"), "||4|");
  assertEquals(read("\n\n", "\n", "\nA"), "|A|");
  assertEquals(read("\n\n", "\n", "A"), "|\nA|");
  assertEquals(read("\n\n", "\n"), "|\n");
  assertEquals(read("", "A"), "A|");
});

/** A stream, what is left to write to it, and what its reader got. */
function openStream(flusher: Flusher) {
  let pending = "";
  let cancelled = 0;
  const stream = new EventStream({
    flusher,
    drain: () => {
      const text = pending;
      pending = "";
      return text;
    },
    cancel: () => cancelled++,
  });
  const reader = stream.body.getReader();
  return {
    stream,
    reader,
    write(text: string) {
      pending += text;
      stream.changed();
    },
    async read() {
      const { value } = await reader.read();
      return value && new TextDecoder().decode(value);
    },
    get cancelled() {
      return cancelled;
    },
  };
}

Deno.test("EventStream writes at once while few are open", async () => {
  const flusher = new Flusher();
  const { stream, write, read } = openStream(flusher);
  write("a");
  assertEquals(await read(), "a");
  write("b");
  assertEquals(await read(), "b");
  stream.close("c");
  assertEquals([await read(), await read()], ["c", undefined]);
  assertEquals(flusher.open, 0);
});

Deno.test("EventStream writes together while many are open, the first piece at once", async () => {
  const flusher = new Flusher();
  const streams = Array.from({ length: 40 }, () => openStream(flusher));
  for (const { write } of streams) write("a");
  for (const { read } of streams) assertEquals(await read(), "a");
  const started = performance.now();
  for (const piece of ["b", "c", "d"]) {
    for (const { write } of streams) write(piece);
  }
  for (const { read } of streams) assertEquals(await read(), "bcd");
  assert(performance.now() - started >= 5);
  for (const { write } of streams) write("e");
  for (const { stream, write } of streams) {
    stream.close("f");
    write("g");
  }
  for (const { read } of streams) {
    assertEquals([await read(), await read()], ["ef", undefined]);
  }
  // A timer that was set for what has closed has nothing to write.
  await new Promise((resolve) => setTimeout(resolve, 30));
  assertEquals(flusher.open, 0);
});

Deno.test("EventStream keeps what a slow reader has not taken", async () => {
  const flusher = new Flusher();
  const { stream, write, read } = openStream(flusher);
  for (const piece of "abcdef") write(piece);
  assertEquals(await read(), "a");
  assertEquals(await read(), "bcdef");
  stream.close("");
  assertEquals(await read(), undefined);
});

Deno.test("EventStream tells when its reader leaves", async () => {
  const flusher = new Flusher();
  const opened = openStream(flusher);
  opened.write("a");
  await opened.reader.cancel();
  assertEquals([opened.cancelled, flusher.open], [1, 0]);
  opened.write("b");
  opened.stream.close("c");
});

Deno.test("Counter and Histogram write Prometheus's lines", () => {
  const counter = new Counter();
  assertEquals([...counter.lines("n")], ["n 0"]);
  counter.add(2, { path: 'a"b\\c' });
  counter.add(1, { path: 'a"b\\c' });
  assertEquals([...counter.lines("n")], ['n{path="a\\"b\\\\c"} 3']);
  const histogram = new Histogram([1, 2]);
  for (const value of [0.5, 1, 1.5, 9]) histogram.observe(value);
  assertEquals([...histogram.lines("h")], [
    'h_bucket{le="1"} 2',
    'h_bucket{le="2"} 3',
    'h_bucket{le="+Inf"} 4',
    "h_sum 12",
    "h_count 4",
  ]);
});
