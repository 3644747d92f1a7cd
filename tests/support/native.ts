/** Programs of tests/native: C++ headers checked on the host. */
import { assertEquals } from "@std/assert";

const ROOT = new URL("../../", import.meta.url);

/** Compiles a program and runs it; it says what is wrong and ends with another status than 0. */
export async function runNative(source: string) {
  const program = await Deno.makeTempFile();
  const run = async (command: string, args: string[]) => {
    const { code, stderr } = await new Deno.Command(command, {
      args,
      cwd: ROOT,
      stdout: "null",
      stderr: "piped",
    }).output();
    assertEquals(code, 0, new TextDecoder().decode(stderr));
  };
  try {
    await run("c++", [
      "-std=c++17",
      "-O1",
      "-Wall",
      "-Wextra",
      "-Werror",
      "-Icsrc",
      "-Icsrc/include",
      `tests/native/${source}`,
      "-o",
      program,
    ]);
    await run(program, []);
  } finally {
    await Deno.remove(program);
  }
}
