/** What is known of the CUDA library where no GPU is at hand. */
import { assert, assertEquals } from "@std/assert";
import {
  type CudaResults,
  cudaSourcesHash,
  parseLog,
  RESULTS,
} from "./support/cuda_results.ts";

Deno.test("parseLog() reads outcomes by file and name", () => {
  const log = [
    "./tests/a_test.ts => one (sm90) ... \x1b[32mok\x1b[0m (3ms)",
    "./tests/a_test.ts => two ... FAILED (1s)",
    "./tests/b_test.ts => three ... ignored (0ms)",
    "noise",
  ].join("\n");
  assertEquals(parseLog(log), {
    "a_test.ts: one (sm90)": "ok",
    "a_test.ts: two": "FAILED",
    "b_test.ts: three": "ignored",
  });
});

Deno.test("cuda-results.json says what ran on a GPU, and whether it is stale", async () => {
  const results: CudaResults = JSON.parse(await Deno.readTextFile(RESULTS));
  const outcomes = Object.values(results.tests);
  assertEquals(
    results.passed,
    outcomes.filter((outcome) => outcome === "ok").length,
  );
  assertEquals(
    results.failed.length,
    outcomes.filter((outcome) => outcome === "FAILED").length,
  );
  assert(results.passed > 0, "no test of the run passed");
  const { machine, commit, passed, failed } = results;
  console.log(
    `CUDA, ${machine}, commit ${commit}: ${passed} passed, ${failed.length} failed`,
  );
  const sources = await cudaSourcesHash();
  if (sources !== results.sources) {
    console.log(
      `Stale: the CUDA sources are ${sources}, and ${results.sources} ran; ` +
        "run the tests on a GPU again and keep the results (tests/support/cuda_results.ts)",
    );
  }
});
