/**
 * `deno task emulate:cuda [arguments of deno test]`: builds the CUDA library for an emulated GPU and runs
 * tests on it, here those of single operations by default. `MOELA_EMULATED_SEED` chooses the order
 * in which threads run.
 */
import { ROOT, run } from "./run.ts";

if (import.meta.main) {
  const deno = Deno.execPath();
  await run(deno, ["run", "-A", "csrc/build.ts"]);
  await run(deno, ["run", "-A", "csrc/build.ts", "--emulated-cuda"]);
  const operations = [...Deno.readDirSync(new URL("tests/", ROOT))]
    .map(({ name }) => name)
    .filter((name) => name.startsWith("ops_"))
    .sort()
    .map((name) => `tests/${name}`);
  const tests = Deno.args.length > 0 ? Deno.args : operations;
  await run(deno, ["test", "-A", ...tests], {
    MOELA_CUDA_LIBRARY:
      new URL("build/emulated_cuda/libmoela_cuda.so", ROOT).pathname,
  });
}
