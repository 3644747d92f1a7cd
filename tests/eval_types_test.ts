/** What nano still knows in the smaller weight types, beside bf16. */
import { assert } from "@std/assert";
import { loadModel, type LoadOptions, type WeightsType } from "../mod.ts";
import { cudaWorks } from "../ffi/mod.ts";
import {
  assertKnows,
  type Knowledge,
  knowledge,
  NANO,
  perplexity,
} from "./support/nano.ts";
import { openLibraries } from "./support/open_library.ts";
import { kernelSets } from "./support/ops.ts";

// Before the tests: a library opened within one counts as a leak of it.
openLibraries();

/** Where a limit is as narrow as what AMX and CUDA round besides: one set everywhere. */
const ONE_SET: LoadOptions = kernelSets.includes("avx2")
  ? { device: "cpu", kernels: "avx2" }
  : { device: "cpu" };

/** Of bf16, by device and kernels: made by the test that comes first. */
const exact = new Map<string, Knowledge>();
async function inBf16(options: LoadOptions): Promise<Knowledge> {
  await using model = await loadModel(NANO, options);
  const { name, kernels } = model.inspect().device.info();
  const key = `${name}, ${kernels}`;
  const made = exact.get(key) ?? await knowledge(model);
  exact.set(key, made);
  return made;
}

interface Limits {
  weights: WeightsType;
  percent: number;
  fewer: number;
  needles: number;
  options: LoadOptions;
  ignore?: boolean;
}

const BEST: LoadOptions = {};
const LIMITS: Limits[] = [
  { weights: "int8", percent: 0.3, fewer: 1, needles: 0, options: BEST },
  { weights: "fp8", percent: 0.3, fewer: 2, needles: 0, options: BEST },
  // What int4 should hold and misses (docs/cpu.md, weight types), and where it stands until then.
  {
    weights: "int4",
    percent: 2,
    fewer: 4,
    needles: 0,
    options: ONE_SET,
    ignore: true,
  },
  { weights: "int4", percent: 4.6, fewer: 4, needles: 2, options: ONE_SET },
];

for (const { weights, percent, fewer, needles, options, ignore } of LIMITS) {
  Deno.test({
    name:
      `nano in ${weights}: perplexity at most ${percent} % above bf16, at most ${fewer} answers fewer and ${needles} needles missed`,
    ignore: ignore ?? false,
    fn: async () => {
      const expected = await inBf16(options);
      await using model = await loadModel(NANO, { weights, ...options });
      await assertKnows(model, expected, { percent, fewer, needles });
    },
  });
}

Deno.test({
  name: "nano in int4: a GPU's perplexity is within 0.1 % of the CPU's",
  ignore: !cudaWorks(),
  fn: async () => {
    const of = async (options: LoadOptions) => {
      await using model = await loadModel(NANO, {
        weights: "int4",
        ...options,
      });
      return (await perplexity(model)).value;
    };
    const expected = await of(ONE_SET);
    const found = await of({ device: "cuda" });
    const loss = 100 * (found / expected - 1);
    assert(Math.abs(loss) <= 0.1, `${found} against ${expected}: ${loss} %`);
  },
});
