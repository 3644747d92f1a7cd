import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { StopMatcher } from "../src/text/stop.ts";

/** Pushes all chunks; what was shown, and whether a stop string ended it. */
function run(stops: readonly string[], chunks: readonly string[]) {
  const matcher = new StopMatcher(stops);
  let shown = "";
  for (const chunk of chunks) {
    const { text, stopped } = matcher.push(chunk);
    shown += text;
    if (stopped) return { shown, stopped };
  }
  return { shown: shown + matcher.flush(), stopped: false };
}

Deno.test("StopMatcher holds back what may begin a stop string", () => {
  const matcher = new StopMatcher(["\n\nUser:"]);
  assertEquals(matcher.push("Hello!\n"), { text: "Hello!", stopped: false });
  assertEquals(matcher.push("\nUs"), { text: "", stopped: false });
  assertEquals(matcher.push("e"), { text: "", stopped: false });
  assertEquals(matcher.push("!"), { text: "\n\nUse!", stopped: false });
  assertEquals(matcher.push("\n\nUser: a"), { text: "", stopped: true });
  assertEquals(matcher.push("more"), { text: "", stopped: true });
  assertEquals(matcher.flush(), "");
});

Deno.test("StopMatcher gives back at the end what was no stop string", () => {
  assertEquals(run(["END"], ["the E", "N"]), {
    shown: "the EN",
    stopped: false,
  });
});

Deno.test("StopMatcher sees a stop string that begins within a failed one", () => {
  assertEquals(run(["aab"], ["a", "a", "a", "b", "c"]), {
    shown: "a",
    stopped: true,
  });
});

Deno.test("StopMatcher ends at the stop string that is complete first", () => {
  assertEquals(run(["abcd", "bc"], ["xabcd"]), { shown: "xa", stopped: true });
  assertEquals(run(["b", "ab"], ["xab"]), { shown: "x", stopped: true });
});

Deno.test("StopMatcher never splits a character", () => {
  // Both foxes' first code unit is the same.
  const matcher = new StopMatcher(["🦊"]);
  assertEquals(matcher.push("a🦉"), { text: "a🦉", stopped: false });
  assertEquals(matcher.push("🦊"), { text: "", stopped: true });
});

Deno.test("StopMatcher without stop strings shows everything", () => {
  assertEquals(run([], ["a", "b"]), { shown: "ab", stopped: false });
});

Deno.test("StopMatcher refuses an empty stop string", () => {
  assertThrows(() => new StopMatcher(["a", ""]), RangeError, "stop string 1");
});

Deno.test("StopMatcher does not depend on how the text was cut", () => {
  const letters = fc.string({ unit: fc.constantFrom("a", "b"), maxLength: 12 });
  const stop = fc.string({
    unit: fc.constantFrom("a", "b"),
    minLength: 1,
    maxLength: 4,
  });
  fc.assert(
    fc.property(
      fc.array(letters, { maxLength: 8 }),
      fc.array(stop, { maxLength: 3 }),
      (chunks, stops) => {
        const text = chunks.join("");
        let expected = { shown: text, stopped: false };
        // By definition: the shortest beginning that ends with a stop string.
        for (let end = 1; end <= text.length && !expected.stopped; end++) {
          const longest = stops
            .filter((each) => text.slice(0, end).endsWith(each))
            .reduce((n, each) => Math.max(n, each.length), 0);
          if (longest > 0) {
            expected = { shown: text.slice(0, end - longest), stopped: true };
          }
        }
        assertEquals(run(stops, chunks), expected);
      },
    ),
    { numRuns: 3000 },
  );
});
