/**
 * `deno task sanitize [arguments of deno test]`: builds the library with address and
 * undefined-behaviour sanitizers and runs tests on it; default: all that call it, but those below.
 */
import { ROOT, run } from "./run.ts";

/** Tests that never call the library, or call the one of the build folder in their own process. */
const WITHOUT_LIBRARY =
  /^(checkpoint|config|cuda|emulated|errors|examples|grammar_(?!generate)|reference|safetensors|support|text)/;
/** Tests of speed, and of so much work that here they take an hour. */
const TOO_SLOW = /^(cancel|eval)/;

/** Where the compiler keeps a library of its own. */
async function libraryOfCompiler(name: string): Promise<string> {
  const { stdout } = await new Deno.Command("g++", {
    args: [`-print-file-name=${name}`],
  }).output();
  return new TextDecoder().decode(stdout).trim();
}

function testsOfLibrary(): string[] {
  return [...Deno.readDirSync(new URL("tests/", ROOT))]
    .map(({ name }) => name)
    .filter((name) => name.endsWith("_test.ts"))
    .filter((name) => !WITHOUT_LIBRARY.test(name) && !TOO_SLOW.test(name))
    .sort()
    .map((name) => `tests/${name}`);
}

if (import.meta.main) {
  const deno = Deno.execPath();
  await run(deno, ["run", "-A", "csrc/build.ts", "--sanitize"]);
  const tests = Deno.args.length > 0 ? Deno.args : testsOfLibrary();
  await run(deno, ["test", "-A", ...tests], {
    // The sanitizer must be in the process before the library, and looks for the C++ runtime's
    // functions when it starts.
    LD_PRELOAD: [
      await libraryOfCompiler("libasan.so"),
      await libraryOfCompiler("libstdc++.so"),
    ].join(" "),
    // What the runtime and V8 keep to the end is no leak of the library's.
    ASAN_OPTIONS: "detect_leaks=0",
    UBSAN_OPTIONS: "print_stacktrace=1",
    MOELA_LIBRARY: new URL("build/sanitize/libmoela.so", ROOT).pathname,
  });
}
