/** What nano knows in bf16 and f32: perplexity of held-out prose, answers, needles. */
import { assert, assertEquals } from "@std/assert";
import { loadModel, type LoadOptions } from "../mod.ts";
import {
  heldOutTokens,
  missedNeedles,
  NANO,
  otherAnswers,
  perplexity,
} from "./support/nano.ts";
import { openLibraries } from "./support/open_library.ts";

// Before the tests: a library opened within one counts as a leak of it.
openLibraries();

interface Perplexity {
  tokens: number;
  first_ids: number[];
  windows: Record<string, { count: number; perplexity: number }>;
}

const reference: Perplexity = JSON.parse(
  await Deno.readTextFile(
    new URL("./fixtures/nano/nano.json", import.meta.url),
  ),
).perplexity;

function testPerplexity(weights: LoadOptions["weights"], tolerance: number) {
  const type = weights === "auto" ? "bf16 as stored" : weights;
  for (const [size, expected] of Object.entries(reference.windows)) {
    Deno.test(`perplexity of held-out prose in ${type}, windows of ${size}`, async () => {
      await using model = await loadModel(NANO, { weights });
      const tokens = heldOutTokens(model);
      assertEquals(tokens.length, reference.tokens);
      const { first_ids } = reference;
      assertEquals(tokens.slice(0, first_ids.length), first_ids);
      const { count, value } = await perplexity(model, { size: Number(size) });
      assertEquals(count, expected.count);
      const error = Math.abs(value / expected.perplexity - 1);
      assert(
        error <= tolerance,
        `${value} against ${expected.perplexity}: off by ${100 * error} %`,
      );
    });
  }
}

testPerplexity("auto", 0.003);
testPerplexity("f32", 0.0001);

Deno.test("at least 98 of 100 chat answers on nano in bf16 are the reference's", async () => {
  await using model = await loadModel(NANO);
  const other = await otherAnswers(model);
  assert(other.length <= 2, other.join("\n"));
});

Deno.test("all 25 needles are found on nano in bf16", async () => {
  await using model = await loadModel(NANO);
  assertEquals(await missedNeedles(model), []);
});
