/** The repository's root. */
export const ROOT: URL = new URL("../", import.meta.url);

/** Runs a command there with its output on ours; ends this process with its code when it fails. */
export async function run(
  command: string,
  args: string[],
  env: Record<string, string> = {},
) {
  const { code } = await new Deno.Command(command, {
    args,
    cwd: ROOT,
    env,
    stdout: "inherit",
    stderr: "inherit",
  }).output();
  if (code !== 0) Deno.exit(code);
}
