/** What nano still knows in the smaller weight types, beside bf16. */
import { loadModel } from "../mod.ts";
import {
  assertKnows,
  type Knowledge,
  knowledge,
  NANO,
} from "./support/nano.ts";
import { openLibraries } from "./support/open_library.ts";

// Before the tests: a library opened within one counts as a leak of it.
openLibraries();

/** Of bf16: made by the test that comes first. */
let exact: Knowledge | undefined;
async function inBf16(): Promise<Knowledge> {
  if (exact === undefined) {
    await using model = await loadModel(NANO);
    exact = await knowledge(model);
  }
  return exact;
}

for (
  const [weights, percent, fewer] of [
    ["int8", 0.3, 1],
    ["int4", 2, 4],
    ["fp8", 0.3, 2],
  ] as const
) {
  Deno.test(`nano in ${weights}: perplexity at most ${percent} % above bf16, at most ${fewer} answers fewer, all needles`, async () => {
    const expected = await inBf16();
    await using model = await loadModel(NANO, { weights });
    await assertKnows(model, expected, { percent, fewer });
  });
}
