/**
 * Makes `build/tokenizers.js` and `build/tokenizers.wasm` from the npm package
 * `@mlc-ai/web-tokenizers`: the Hugging Face tokenizers compiled to WebAssembly.
 *
 * The package is a UMD script that calls itself an ES module, so that Deno can
 * neither import nor require it. Here its text becomes an ES module with one
 * export, `create(log)`, which
 *  - touches no global and asks no permission but to read: the code that looks
 *    for a page, a worker or Node is turned off;
 *  - starts at once, not in a later turn, so that an instance that aborted can
 *    be replaced in the middle of a synchronous call;
 *  - compiles the WebAssembly once, however many instances are made, and from a
 *    file of its own: as text within the script it costs 30 ms more to load.
 *
 * Each edit must apply exactly as often as it says: another version of the
 * package fails here, loudly, and not later in a strange way.
 *
 * @module
 */

import { createRequire } from "node:module";

const PACKAGE = "@mlc-ai/web-tokenizers";
const VERSION = "0.1.6";

/** One textual edit, and how often it must apply. */
interface Edit {
  readonly what: string;
  readonly find: RegExp;
  readonly put: string;
  readonly count: number;
}

const EDITS: readonly Edit[] = [
  {
    what: "the source map's line",
    find: /^\/\/# sourceMappingURL=.*$/gm,
    put: "",
    count: 1,
  },
  {
    what: "the script's own address",
    find:
      /\(typeof document === 'undefined' && typeof location === 'undefined' \? .*? document\.baseURI\)\.href\)\)/g,
    put: '""',
    count: 3,
  },
  {
    what: "the page flag",
    find: /var ENVIRONMENT_IS_WEB=typeof window=="object";/g,
    put: "var ENVIRONMENT_IS_WEB=false;",
    count: 1,
  },
  {
    what: "the worker flag",
    find: /var ENVIRONMENT_IS_WORKER=typeof importScripts=="function";/g,
    put: "var ENVIRONMENT_IS_WORKER=false;",
    count: 1,
  },
  {
    what: "the Node flag",
    find:
      /var ENVIRONMENT_IS_NODE=typeof process=="object"&&typeof process\.versions=="object"&&typeof process\.versions\.node=="string";/g,
    put: "var ENVIRONMENT_IS_NODE=false;",
    count: 1,
  },
  {
    what: "the start of the runtime",
    find: /^ {2}var binding = null;$/gm,
    put: "  var binding = start(Module);",
    count: 1,
  },
  {
    what: "the exports",
    find: /exports\["default"\] = index;/g,
    put: "exports.binding = binding;",
    count: 1,
  },
];

const WASM = /"data:application\/octet-stream;base64,([A-Za-z0-9+/=]+)"/g;

const HEAD = `const WASM = new URL("tokenizers.wasm", import.meta.url);
let compiled;

/** A fresh instance with a heap of its own; \`log\` gets each line it prints. */
export function create(log) {
  const start = (Module) => {
    const runtime = {
      print: log,
      printErr: log,
      instantiateWasm(imports, receive) {
        compiled ??= new WebAssembly.Module(Deno.readFileSync(WASM));
        const instance = new WebAssembly.Instance(compiled, imports);
        receive(instance);
        return instance.exports;
      },
    };
    Module(runtime).catch(() => {});
    if (!runtime.calledRun) throw new Error("the tokenizer did not start");
    return runtime;
  };
  const module = { exports: {} };
  const exports = module.exports;
`;

const TAIL = `
  return {
    /** A tokenizer from the bytes of a tokenizer.json, as an ArrayBuffer. */
    open: (json) =>
      new exports.Tokenizer(exports.binding.Tokenizer.FromBlobJSON(json)),
  };
}
`;

/** Replaces all matches, which must be as many as the edit says. */
function apply(source: string, edit: Edit): string {
  let found = 0;
  const result = source.replace(edit.find, () => (found++, edit.put));
  if (found !== edit.count) {
    throw new Error(
      `Cannot bundle ${PACKAGE}: ${edit.what} was found ${found} times, and ` +
        `must be there ${edit.count} times, as in version ${VERSION}`,
    );
  }
  return result;
}

/**
 * The ES module and the WebAssembly from the text of the package's
 * `lib/index.js`.
 *
 * @throws {Error} When the text is not of the version that the edits are for.
 */
export function transform(
  source: string,
): { script: string; wasm: Uint8Array<ArrayBuffer> } {
  const wasm = [...source.matchAll(WASM)].map((match) => match[1]);
  if (wasm.length !== 1) {
    throw new Error(
      `Cannot bundle ${PACKAGE}: ${wasm.length} embedded binaries were found, ` +
        `and there must be one, as in version ${VERSION}`,
    );
  }
  const body = EDITS.reduce(apply, source.replace(WASM, '""'));
  return { script: HEAD + body + TAIL, wasm: Uint8Array.fromBase64(wasm[0]) };
}

async function digest(...texts: readonly string[]): Promise<string> {
  const bytes = new TextEncoder().encode(texts.join("\0"));
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
}

/** Writes a file in one step: whoever reads sees the old or the new one. */
async function replace(path: URL, contents: string | Uint8Array) {
  const partial = new URL(`${path}.${crypto.randomUUID()}.tmp`);
  const bytes = typeof contents === "string"
    ? new TextEncoder().encode(contents)
    : contents;
  await Deno.writeFile(partial, bytes);
  await Deno.rename(partial, path);
}

/**
 * Writes `tokenizers.js` and `tokenizers.wasm` into the folder `outDir`, unless
 * those that are there came from the same package by the same tool.
 *
 * @param outDir The folder, made when missing; its URL ends with a slash.
 * @throws {Error} When the package is not the version that the edits are for.
 *
 * @example
 * ```ts ignore
 * await bundleTokenizer(new URL("../../build/", import.meta.url));
 * ```
 */
export async function bundleTokenizer(outDir: URL): Promise<void> {
  // This import puts the package into the module graph, so that it is fetched
  // and the next line finds it.
  const { default: info } = await import(
    "@mlc-ai/web-tokenizers/package.json",
    { with: { type: "json" } }
  );
  if (info.version !== VERSION) {
    throw new Error(
      `Cannot bundle ${PACKAGE}: it has version ${info.version}, and must have ${VERSION}`,
    );
  }
  const path = createRequire(import.meta.url).resolve(PACKAGE);
  const source = await Deno.readTextFile(path);
  const tool = await Deno.readTextFile(new URL(import.meta.url));
  const stamp = `// ${PACKAGE} ${VERSION} ${await digest(source, tool)}\n`;

  const script = new URL("tokenizers.js", outDir);
  const wasm = new URL("tokenizers.wasm", outDir);
  if (await startsWith(script, stamp) && await startsWith(wasm, "\0asm")) {
    return;
  }
  const made = transform(source);
  await Deno.mkdir(outDir, { recursive: true });
  // The script last: its stamp says that both are there.
  await replace(wasm, made.wasm);
  await replace(script, stamp + made.script);
}

/** Whether the file is there and begins with `text`, without reading it all. */
async function startsWith(path: URL, text: string): Promise<boolean> {
  try {
    using file = await Deno.open(path);
    const head = new Uint8Array(text.length);
    const read = await file.read(head);
    return read === text.length && new TextDecoder().decode(head) === text;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

if (import.meta.main) {
  await bundleTokenizer(new URL("../../build/", import.meta.url));
}
