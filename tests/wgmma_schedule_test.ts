import { assertEquals } from "@std/assert";

const ROOT = new URL("../", import.meta.url);

Deno.test("wgmma_schedule.h puts every row and strip into one tile", async () => {
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
      "tests/native/wgmma_schedule.cc",
      "-o",
      program,
    ]);
    await run(program, []);
  } finally {
    await Deno.remove(program);
  }
});
