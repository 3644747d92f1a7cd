/**
 * `deno task emulate:cuda [arguments of deno test]`: builds the CUDA library for an emulated GPU and runs
 * tests on it, here those of single operations by default. `MOELA_EMULATED_SEED` chooses the order
 * in which threads run.
 */
const ROOT = new URL("../", import.meta.url);

/** Runs a command with its output on ours; ends this process with its code when it fails. */
async function run(args: string[], env: Record<string, string> = {}) {
  const { code } = await new Deno.Command(Deno.execPath(), {
    args,
    cwd: ROOT,
    env,
    stdout: "inherit",
    stderr: "inherit",
  }).output();
  if (code !== 0) Deno.exit(code);
}

if (import.meta.main) {
  await run(["run", "-A", "csrc/build.ts"]);
  await run(["run", "-A", "csrc/build.ts", "--emulated-cuda"]);
  const operations = [...Deno.readDirSync(new URL("tests/", ROOT))]
    .map(({ name }) => name)
    .filter((name) => name.startsWith("ops_"))
    .sort()
    .map((name) => `tests/${name}`);
  const tests = Deno.args.length > 0 ? Deno.args : operations;
  await run(["test", "-A", ...tests], {
    MOELA_CUDA_LIBRARY:
      new URL("build/emulated_cuda/libmoela_cuda.so", ROOT).pathname,
  });
}
