/**
 * The kernel sets of AVX-512 and AMX on processors without them: the tests of single operations on
 * a library in which SIMDe and csrc/emulate stand in for the instructions. Ignored where SIMDe's
 * headers (Debian: libsimde-dev) are not installed.
 */
import { assert, assertEquals } from "@std/assert";

const ROOT = new URL("../", import.meta.url);

async function output(
  command: string,
  args: string[],
  env: Record<string, string> = {},
) {
  const { code, stdout, stderr } = await new Deno.Command(command, {
    args,
    cwd: ROOT,
    env: { ...env, NO_COLOR: "1" },
    stdout: "piped",
    stderr: "piped",
  }).output();
  const text = new TextDecoder();
  return { code, text: text.decode(stdout) + text.decode(stderr) };
}

async function canEmulate(): Promise<boolean> {
  if (Deno.build.os !== "linux" || Deno.build.arch !== "x86_64") return false;
  const header = ["-include", "simde/x86/avx512/types.h"];
  const file = ["-x", "c++", "/dev/null"];
  const { code } = await output(Deno.env.get("CXX") ?? "c++", [
    "-fsyntax-only",
    ...header,
    ...file,
  ]);
  return code === 0;
}

Deno.test({
  name: "operations are right on avx512 and amx, emulated",
  ignore: !await canEmulate(),
  async fn() {
    const deno = Deno.execPath();
    const built = await output(deno, [
      "run",
      "-A",
      "csrc/build.ts",
      "--emulate",
    ]);
    assertEquals(built.code, 0, built.text);
    const tests = [...Deno.readDirSync(new URL("tests/", ROOT))]
      .map(({ name }) => `tests/${name}`)
      .filter((path) => /\/ops_.*_test\.ts$/.test(path));
    const { code, text } = await output(
      deno,
      ["test", "-A", "--filter", "/\\((avx512|amx)|every set/", ...tests],
      { MOELA_LIBRARY: new URL("build/emulate/libmoela.so", ROOT).pathname },
    );
    assertEquals(code, 0, text);
    // Both sets were there, and tests of them in each file.
    for (const set of ["avx512", "amx"]) {
      const passed = text.split("\n").filter((line) =>
        line.includes(`(${set}`) && / \.\.\. ok/.test(line)
      );
      assert(passed.length >= 50, `${passed.length} tests of ${set}\n${text}`);
    }
  },
});
