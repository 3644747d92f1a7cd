/** What nano still knows in the smaller weight types, beside bf16. */
import { loadModel, type WeightsType } from "../mod.ts";
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

interface Limits {
  weights: WeightsType;
  percent: number;
  fewer: number;
  needles: number;
  ignore?: boolean;
}

const LIMITS: Limits[] = [
  { weights: "int8", percent: 0.3, fewer: 1, needles: 0 },
  { weights: "fp8", percent: 0.3, fewer: 2, needles: 0 },
  // What int4 should hold and misses (docs/cpu.md, weight types), and where it stands until then.
  { weights: "int4", percent: 2, fewer: 4, needles: 0, ignore: true },
  { weights: "int4", percent: 4.6, fewer: 4, needles: 2 },
];

for (const { weights, percent, fewer, needles, ignore } of LIMITS) {
  Deno.test({
    name:
      `nano in ${weights}: perplexity at most ${percent} % above bf16, at most ${fewer} answers fewer and ${needles} needles missed`,
    ignore: ignore ?? false,
    fn: async () => {
      const expected = await inBf16();
      await using model = await loadModel(NANO, { weights });
      await assertKnows(model, expected, { percent, fewer, needles });
    },
  });
}
