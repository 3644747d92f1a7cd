/**
 * `deno task fmt:c`: formats C, C++ and CUDA as `.clang-format` says; with `--check` it changes
 * nothing, names what differs and fails.
 */
import { format } from "@wasm-fmt/clang-format";

const ROOT = new URL("../", import.meta.url);
const FOLDERS = ["csrc/", "bench/", "tests/emulated_cuda/"];

/** `.clang-format` as the inline style that the formatter takes: its top-level keys. */
function inlineStyle(yaml: string): string {
  const pairs = yaml.split("\n").filter((line) => /^\w+: /.test(line));
  return `{${pairs.join(", ")}}`;
}

async function* sources(folder: URL): AsyncGenerator<URL> {
  for await (const entry of Deno.readDir(folder)) {
    const url = new URL(entry.name + (entry.isDirectory ? "/" : ""), folder);
    if (entry.isDirectory) yield* sources(url);
    else if (/\.(h|cc|cu|cuh)$/.test(entry.name)) yield url;
  }
}

if (import.meta.main) {
  const check = Deno.args.includes("--check");
  const only = Deno.args.filter((argument) => argument !== "--check");
  const style = inlineStyle(
    await Deno.readTextFile(new URL(".clang-format", ROOT)),
  );
  let different = 0;
  for (const folder of FOLDERS) {
    for await (const url of sources(new URL(folder, ROOT))) {
      const name = url.pathname.slice(ROOT.pathname.length);
      if (only.length > 0 && !only.some((path) => name.startsWith(path))) {
        continue;
      }
      const source = await Deno.readTextFile(url);
      // The formatter knows CUDA by its C++ side.
      const formatted = format(source, "source.cc", style);
      if (formatted === source) continue;
      different++;
      console.error(check ? `Not formatted: ${name}` : `Formatted ${name}`);
      if (!check) await Deno.writeTextFile(url, formatted);
    }
  }
  if (check && different > 0) {
    console.error("Run 'deno task fmt:c'.");
    Deno.exit(1);
  }
}
