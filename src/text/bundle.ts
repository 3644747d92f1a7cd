/**
 * Makes ES modules of two npm packages that are WebAssembly in a UMD script:
 * `build/tokenizers.js` of `@mlc-ai/web-tokenizers`, the Hugging Face
 * tokenizers, and `build/xgrammar.js` of `@mlc-ai/web-xgrammar`; each with its
 * binary beside it.
 *
 * The packages call their scripts ES modules, which they are not, so that Deno
 * can neither import nor require them. Here their text becomes an ES module
 * with one export, `create(log)`, which
 *  - touches no global and asks no permission but to read: the code that looks
 *    for a page, a worker or Node is turned off;
 *  - starts at once, not in a later turn, so that an instance that aborted can
 *    be replaced in the middle of a synchronous call;
 *  - compiles the WebAssembly once, however many instances are made, and from a
 *    file of its own: as text within the script it costs 30 ms more to load.
 *
 * Each edit must apply exactly as often as it says: another version of a
 * package fails here, loudly, and not later in a strange way.
 *
 * @module
 */

import { createRequire } from "node:module";

/** One textual edit, and how often it must apply. */
interface Edit {
  readonly what: string;
  readonly find: RegExp;
  readonly put: string;
  readonly count: number;
}

/** A package, and how its script becomes a module. */
export interface BundledPackage {
  /** Its name on npm. */
  readonly name: string;
  /** The version that the edits are for. */
  readonly version: string;
  /** The files that are made: `${output}.js` and `${output}.wasm`. */
  readonly output: string;
  /** Reads its package.json, which puts the package into the module graph. */
  readonly info: () => Promise<{ default: { version: string } }>;
  /** Edits beside those that both packages need. */
  readonly edits: readonly Edit[];
  /** What `create` returns: an expression over `exports`. */
  readonly result: string;
}

/** Edits of what Emscripten and Rollup put into both packages. */
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
];

/** `@mlc-ai/web-tokenizers`. */
export const TOKENIZERS: BundledPackage = {
  name: "@mlc-ai/web-tokenizers",
  version: "0.1.6",
  output: "tokenizers",
  info: () =>
    import("@mlc-ai/web-tokenizers/package.json", { with: { type: "json" } }),
  edits: [
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
  ],
  result: `{
    /** A tokenizer from the bytes of a tokenizer.json, as an ArrayBuffer. */
    open: (json) =>
      new exports.Tokenizer(exports.binding.Tokenizer.FromBlobJSON(json)),
  }`,
};

/**
 * `@mlc-ai/web-xgrammar`. Its own classes are asynchronous only to start the
 * runtime: what `create` returns is the library under them.
 */
export const XGRAMMAR: BundledPackage = {
  name: "@mlc-ai/web-xgrammar",
  version: "0.1.27",
  output: "xgrammar",
  info: () =>
    import("@mlc-ai/web-xgrammar/package.json", { with: { type: "json" } }),
  edits: [
    {
      what: "the script element",
      find:
        /^ {2}var _documentCurrentScript = typeof document !== 'undefined' \? document\.currentScript : null;$/gm,
      put: "",
      count: 1,
    },
    {
      what: "the start of the runtime",
      find: /^ {2}let binding = null;$/gm,
      put: "  let binding = start(Module);",
      count: 1,
    },
    {
      what: "the exports",
      find: /exports\.default = index;/g,
      put: "exports.binding = binding;",
      count: 1,
    },
  ],
  result: "exports.binding",
};

const WASM = /"data:application\/octet-stream;base64,([A-Za-z0-9+/=]+)"/g;

/** The module: the runtime's start, the package's text, and what it returns. */
function wrap({ name, output, result }: BundledPackage, body: string): string {
  return `const WASM = new URL("${output}.wasm", import.meta.url);
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
    if (!runtime.calledRun) throw new Error("${name} did not start");
    return runtime;
  };
  const module = { exports: {} };
  const exports = module.exports;
${body}
  return ${result};
}
`;
}

/** Replaces all matches, which must be as many as the edit says. */
function apply(source: string, edit: Edit, of: BundledPackage): string {
  let found = 0;
  const result = source.replace(edit.find, () => (found++, edit.put));
  if (found !== edit.count) {
    throw new Error(
      `Cannot bundle ${of.name}: ${edit.what} was found ${found} times, and ` +
        `must be there ${edit.count} times, as in version ${of.version}`,
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
  of: BundledPackage,
): { script: string; wasm: Uint8Array<ArrayBuffer> } {
  const wasm = [...source.matchAll(WASM)].map((match) => match[1]);
  if (wasm.length !== 1) {
    throw new Error(
      `Cannot bundle ${of.name}: ${wasm.length} embedded binaries were found, ` +
        `and there must be one, as in version ${of.version}`,
    );
  }
  const body = [...EDITS, ...of.edits].reduce(
    (text, edit) => apply(text, edit, of),
    source.replace(WASM, '""'),
  );
  return { script: wrap(of, body), wasm: Uint8Array.fromBase64(wasm[0]) };
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
 * Writes the script and the binary of a package into the folder `outDir`,
 * unless those that are there came from the same package by the same tool.
 *
 * @param of Which package.
 * @param outDir The folder, made when missing; its URL ends with a slash.
 * @throws {Error} When the package is not the version that the edits are for.
 *
 * @example
 * ```ts ignore
 * await bundle(XGRAMMAR, new URL("../../build/", import.meta.url));
 * ```
 */
export async function bundle(of: BundledPackage, outDir: URL): Promise<void> {
  const { default: info } = await of.info();
  if (info.version !== of.version) {
    throw new Error(
      `Cannot bundle ${of.name}: it has version ${info.version}, and must ` +
        `have ${of.version}`,
    );
  }
  const path = createRequire(import.meta.url).resolve(of.name);
  const source = await Deno.readTextFile(path);
  const tool = await Deno.readTextFile(new URL(import.meta.url));
  const stamp = `// ${of.name} ${of.version} ${await digest(source, tool)}\n`;

  const script = new URL(`${of.output}.js`, outDir);
  const wasm = new URL(`${of.output}.wasm`, outDir);
  if (await startsWith(script, stamp) && await startsWith(wasm, "\0asm")) {
    return;
  }
  const made = transform(source, of);
  await Deno.mkdir(outDir, { recursive: true });
  // The script last: its stamp says that both are there.
  await replace(wasm, made.wasm);
  await replace(script, stamp + made.script);
}

/** Makes `tokenizers.js` and `tokenizers.wasm` in `outDir`, as {@linkcode bundle} does. */
export function bundleTokenizer(outDir: URL): Promise<void> {
  return bundle(TOKENIZERS, outDir);
}

/** Makes `xgrammar.js` and `xgrammar.wasm` in `outDir`, as {@linkcode bundle} does. */
export function bundleGrammar(outDir: URL): Promise<void> {
  return bundle(XGRAMMAR, outDir);
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
  const build = new URL("../../build/", import.meta.url);
  await bundleTokenizer(build);
  await bundleGrammar(build);
}
