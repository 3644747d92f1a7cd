/**
 * The CUDA library where there is no GPU: its sources compiled for the GPU that
 * tests/emulated_cuda emulates, and tests of single operations and of one checkpoint run on it.
 * docs/cuda.md says what that shows. More of it: `deno task emulate:cuda tests/NAME_test.ts`.
 */
import { assert } from "@std/assert";

const ROOT = new URL("../", import.meta.url);

/** The emulation switches between threads in assembler, and a kernel wants 64-bit Linux. */
async function canEmulate(): Promise<boolean> {
  if (Deno.build.os !== "linux" || Deno.build.arch !== "x86_64") return false;
  try {
    const { success } = await new Deno.Command("g++", { args: ["--version"] })
      .output();
    return success;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

const here = await canEmulate();

/** What the tests print when they are run on the emulated GPU, and whether they passed. */
async function emulate(args: string[], seed: number) {
  const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "csrc/emulate_cuda.ts", ...args],
    cwd: ROOT,
    env: { MOELA_EMULATED_SEED: String(seed), NO_COLOR: "1" },
  }).output();
  const text = new TextDecoder();
  return { success, output: text.decode(stdout) + text.decode(stderr) };
}

/** Files, which of their tests (those of the CUDA kernel sets), and how many there are at least. */
const RUNS: [string[], string, number][] = [
  [
    [
      "ops_types_test",
      "ops_cache_types_test",
      "ops_cache_test",
      "ops_router_test",
      "ops_rows_test",
    ],
    "/generic|sm90/",
    60,
  ],
  [["ops_mla_test"], "/(attends|multiplies).*(generic|sm90)/", 10],
  [["ops_mixed_test"], "/bits.*(generic|sm90)/", 4],
  [["invariance_test"], "/several models/", 1],
  [["emulated_cuda/small_model"], "/generic|sm90/", 7],
  [["persistent_test"], "/v2-lite, bf16|int4|refuses/", 7],
];

for (const [i, [files, filter, least]] of RUNS.entries()) {
  Deno.test({
    name: `CUDA's sources pass ${files.join(", ")} on an emulated GPU`,
    ignore: !here,
    fn: async () => {
      const names = files.map((file) => `tests/${file}.ts`);
      const { success, output } = await emulate(
        ["--filter", filter, ...names],
        i + 1,
      );
      assert(success, output);
      const passed = Number(/(\d+) passed/.exec(output)?.[1] ?? 0);
      assert(passed >= least, `${passed} tests ran: ${output}`);
    },
  });
}
