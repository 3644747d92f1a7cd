/**
 * `deno task build`: makes what the library needs beside its sources, and does nothing when all of
 * it is current. Options: `--cuda` (the CUDA library instead of the CPU one), `--sanitize` (the CPU
 * library with address and undefined-behaviour sanitizers, in `build/sanitize`), `--emulate` (the
 * CPU library with AVX-512 and AMX emulated, in `build/emulate`), `--emulated-cuda` (the CUDA library
 * for the GPU that tests emulate, in `build/emulated_cuda`).
 */
import { bundlePage } from "../src/server/page_bundle.ts";
import { bundleGrammar, bundleTokenizer } from "../src/text/bundle.ts";

const ROOT = new URL("../", import.meta.url);
const SUFFIX = Deno.build.os === "darwin" ? "dylib" : "so";

interface Target {
  name: string;
  /** Where the library goes. */
  out: URL;
  options: string[];
  /** Folders of its sources. */
  folders: string[];
}

const OPTIONS = ["--cuda", "--sanitize", "--emulate", "--emulated-cuda"];

function target(args: string[]): Target {
  for (const arg of args) {
    if (!OPTIONS.includes(arg)) {
      throw new TypeError(
        `Unknown option ${arg}: ${OPTIONS.join(", ")} are known`,
      );
    }
  }
  const build = new URL("build/", ROOT);
  const folders = ["csrc/"];
  if (args.includes("--cuda")) {
    // All that are supported unless the variable says which, such as 90a: each takes its time.
    const archs = Deno.env.get("MOELA_CUDA_ARCHS") ?? "80;90a";
    const options = ["-DMOELA_CUDA=ON", `-DMOELA_CUDA_ARCHS=${archs}`];
    return { name: "moela_cuda", out: build, options, folders };
  }
  if (args.includes("--emulated-cuda")) {
    return {
      name: "moela_cuda",
      out: new URL("emulated_cuda/", build),
      options: ["-DMOELA_EMULATED_CUDA=ON"],
      folders: [...folders, "tests/emulated_cuda/"],
    };
  }
  for (const kind of ["sanitize", "emulate"]) {
    if (!args.includes(`--${kind}`)) continue;
    return {
      name: "moela",
      out: new URL(`${kind}/`, build),
      options: [`-DMOELA_${kind.toUpperCase()}=ON`],
      folders,
    };
  }
  return { name: "moela", out: build, options: [], folders };
}

/** Every source of the library, in an order that is the same everywhere. */
async function sources(dir: URL): Promise<URL[]> {
  const found: URL[] = [];
  for await (const entry of Deno.readDir(dir)) {
    const url = new URL(entry.name + (entry.isDirectory ? "/" : ""), dir);
    if (entry.isDirectory) found.push(...await sources(url));
    else if (/\.(cc|cu|cuh|h|txt|cmake)$/.test(entry.name)) found.push(url);
  }
  return found.sort((a, b) => a.href < b.href ? -1 : 1);
}

/** The build id: a hash of the sources' names and contents. */
async function buildId(folders: string[]): Promise<string> {
  const parts: Uint8Array<ArrayBuffer>[] = [];
  for (const folder of folders) {
    const base = new URL(folder, ROOT);
    for (const source of await sources(base)) {
      const content = await Deno.readFile(source);
      const name = `${source.href.slice(base.href.length)} ${content.length}\n`;
      parts.push(new TextEncoder().encode(name), content);
    }
  }
  const bytes = new Uint8Array(await new Blob(parts).arrayBuffer());
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return digest.toHex().slice(0, 16);
}

async function run(command: string, args: string[]) {
  let output: Deno.CommandOutput;
  try {
    output = await new Deno.Command(command, {
      args,
      stdout: "piped",
      stderr: "piped",
    }).output();
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    throw new Error(
      `Cannot build: '${command}' is not installed; it and a C++ compiler are needed`,
    );
  }
  if (!output.success) {
    const text = new TextDecoder();
    throw new Error(
      `Cannot build: ${command} ${args.join(" ")} failed\n` +
        text.decode(output.stdout) +
        text.decode(output.stderr),
    );
  }
}

async function needNvcc() {
  try {
    await new Deno.Command(Deno.env.get("CUDACXX") ?? "nvcc", {
      args: ["--version"],
      stdout: "null",
      stderr: "null",
    }).output();
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    throw new Error(
      "Cannot build the CUDA library: nvcc is not installed; the CUDA toolkit (12.8 or later) has it. " +
        "The CPU library works without: 'deno task build'",
    );
  }
}

async function current(library: URL, stamp: URL, id: string): Promise<boolean> {
  try {
    await Deno.stat(library);
    return (await Deno.readTextFile(stamp)).trim() === id;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

async function buildLibrary({ name, out, options, folders }: Target) {
  const id = await buildId(folders);
  const library = new URL(`lib${name}.${SUFFIX}`, out);
  const stamp = new URL(`lib${name}.id`, out);
  if (await current(library, stamp, id)) return;
  if (options.includes("-DMOELA_CUDA=ON")) await needNvcc();
  console.error(`Building ${library.pathname.slice(ROOT.pathname.length)} …`);
  await Deno.mkdir(out, { recursive: true });
  const work = new URL(`cmake-${name}/`, out).pathname;
  await run("cmake", [
    "-S",
    new URL("csrc", ROOT).pathname,
    "-B",
    work,
    "-DCMAKE_BUILD_TYPE=Release",
    `-DMOELA_BUILD_ID=${id}`,
    ...options,
  ]);
  const jobs = String(navigator.hardwareConcurrency);
  await run("cmake", ["--build", work, "--target", name, "--parallel", jobs]);
  // To a name of its own, then renamed: a library that some process has open is never overwritten.
  const fresh = new URL(`lib${name}.${crypto.randomUUID()}.tmp`, out);
  await Deno.copyFile(`${work}lib${name}.${SUFFIX}`, fresh);
  await Deno.rename(fresh, library);
  await Deno.writeTextFile(stamp, id + "\n");
}

if (import.meta.main) {
  try {
    await buildLibrary(target(Deno.args));
    await bundleTokenizer(new URL("build/", ROOT));
    await bundleGrammar(new URL("build/", ROOT));
    await bundlePage(new URL("build/", ROOT));
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    Deno.exit(1);
  }
}
