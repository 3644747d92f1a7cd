/**
 * What a run on a GPU gave, kept where there is none: `tests/cuda-results.json`.
 *
 * Usage, after `deno test -A tests/ | tee LOG` on a machine with a GPU:
 * deno run -A tests/support/cuda_results.ts LOG --machine NAME --commit ID [--sanitizer TEXT]
 */
import { createHash } from "node:crypto";
import { parseArgs } from "node:util";

/** The outcome of a run. */
export interface CudaResults {
  machine: string;
  commit: string;
  /** {@link cudaSourcesHash} of what ran. */
  sources: string;
  /** What compute-sanitizer said, of which run. */
  sanitizer: string;
  passed: number;
  /** Files and names of tests that failed. */
  failed: string[];
  /** Tests of the CUDA kernel sets by name, and those that chose the GPU by themselves. */
  tests: Record<string, "ok" | "FAILED" | "ignored">;
}

const ROOT = new URL("../../", import.meta.url);
export const RESULTS = new URL("tests/cuda-results.json", ROOT);

/** A hash of the sources of the CUDA library, whatever their comments of a line and white space. */
export async function cudaSourcesHash(): Promise<string> {
  const hash = createHash("sha256");
  for (const folder of ["csrc/cuda/", "csrc/include/", "csrc/runtime/"]) {
    const names = Array.from(
      Deno.readDirSync(new URL(folder, ROOT)),
      ({ name }) => name,
    ).sort();
    for (const name of names) {
      const text = await Deno.readTextFile(new URL(folder + name, ROOT));
      const code = text.replace(/\/\/.*$/gm, "").replace(/\s+/g, "");
      hash.update(folder + name).update(code);
    }
  }
  return hash.digest("hex").slice(0, 16);
}

/** Reads the report that `deno test --parallel` prints. */
export function parseLog(log: string): CudaResults["tests"] {
  const tests: CudaResults["tests"] = {};
  // deno-lint-ignore no-control-regex
  const plain = log.replace(/\x1b\[[0-9;]*m/g, "");
  const line = /^\.\/tests\/(\S+) => (.*?) \.\.\. (ok|FAILED|ignored)/gm;
  for (const [, file, name, outcome] of plain.matchAll(line)) {
    tests[`${file}: ${name}`] = outcome as "ok" | "FAILED" | "ignored";
  }
  return tests;
}

if (import.meta.main) {
  const { values, positionals: [path] } = parseArgs({
    args: Deno.args,
    allowPositionals: true,
    options: {
      machine: { type: "string", default: "unknown" },
      commit: { type: "string", default: "unknown" },
      sanitizer: { type: "string", default: "not run" },
    },
  });
  const tests = parseLog(await Deno.readTextFile(path));
  const names = Object.keys(tests);
  const results: CudaResults = {
    machine: values.machine,
    commit: values.commit,
    sources: await cudaSourcesHash(),
    sanitizer: values.sanitizer,
    passed: names.filter((name) => tests[name] === "ok").length,
    failed: names.filter((name) => tests[name] === "FAILED"),
    tests,
  };
  await Deno.writeTextFile(RESULTS, JSON.stringify(results, null, 1) + "\n");
}
