import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { createRequire } from "node:module";
import { CheckpointError, NativeError } from "../src/errors.ts";
import { WasmEncoder } from "../src/text/wasm.ts";
import {
  bundleGrammar,
  bundleTokenizer,
  TOKENIZERS,
  transform,
  XGRAMMAR,
} from "../src/text/bundle.ts";

const ROOT = new URL("../", import.meta.url);
const EXPECTED = [0, 41, 1920, 13, 1040, 2];

/**
 * A program that encodes a text and takes it by a grammar, and tells its ids
 * and the globals it made.
 */
const PROGRAM = `
  const before = new Set(Object.getOwnPropertyNames(globalThis));
  const { Tokenizer } = await import("${new URL(
  "src/text/tokenizer.ts",
  ROOT,
)}");
  const folder = new URL("${new URL("models/nano/", ROOT)}");
  const tokenizer = await Tokenizer.open(folder, { vocabSize: 4096 });
  const ids = tokenizer.encode("Hello, world!");
  const { GrammarCompiler } = await import("${new URL(
  "src/grammar/compiler.ts",
  ROOT,
)}");
  const compiler = await GrammarCompiler.open(tokenizer, 4096, [1]);
  const state = compiler.compile({ ebnf: 'root ::= "Hello" [^x]*' }).start();
  const taken = ids.slice(1).map((id) => state.accept(id)).every(Boolean);
  const added = Object.getOwnPropertyNames(globalThis)
    .filter((name) => !before.has(name));
  const told = { ids, taken, added };
`;

/** Writes a program where imports resolve as in the project. */
async function withProgram<T>(
  text: string,
  use: (path: string) => Promise<T>,
): Promise<T> {
  const path = await Deno.makeTempFile({ suffix: ".mjs" });
  try {
    await Deno.writeTextFile(path, text);
    return await use(path);
  } finally {
    await Deno.remove(path);
  }
}

Deno.test("the tokenizer and xgrammar need no permission but to read, and make no global", async () => {
  const program = PROGRAM + "console.log(JSON.stringify(told));";
  for (const more of [[], ["--location=http://localhost/"]]) {
    const output = await withProgram(program, (path) => {
      const config = decodeURIComponent(new URL("deno.json", ROOT).pathname);
      const args = ["run", "--quiet", "--no-prompt", `--config=${config}`];
      return new Deno.Command(Deno.execPath(), {
        args: [...args, "--allow-read", ...more, path],
      }).output();
    });
    const errors = new TextDecoder().decode(output.stderr);
    assertEquals(output.code, 0, errors);
    const told = JSON.parse(new TextDecoder().decode(output.stdout));
    assertEquals(told, { ids: EXPECTED, taken: true, added: [] });
  }
});

Deno.test("the tokenizer and xgrammar work in a worker", async () => {
  const program = PROGRAM + "self.postMessage(told);";
  const told = await withProgram(
    program,
    (path) =>
      new Promise((resolve, reject) => {
        const worker = new Worker(`file://${path}`, { type: "module" });
        worker.onmessage = ({ data }) => (worker.terminate(), resolve(data));
        worker.onerror = (event) => (worker.terminate(), reject(event));
      }),
  );
  assertEquals(told, { ids: EXPECTED, taken: true, added: [] });
});

Deno.test("WasmEncoder.open() names the task when the bundle is missing", async () => {
  const missing = new URL("build/no-such-file.js", ROOT);
  const error = await assertRejects(
    () => WasmEncoder.open(new ArrayBuffer(0), "tokenizer.json", missing),
    NativeError,
  );
  assertStringIncludes(error.message, missing.href);
  assertStringIncludes(error.message, "deno task build");
});

Deno.test("WasmEncoder replaces an instance that aborted", async () => {
  // The unknown token is not in the vocabulary: the library finds out when it
  // meets a character that it does not know.
  const json = {
    version: "1.0",
    added_tokens: [],
    model: {
      type: "BPE",
      unk_token: "<unk>",
      vocab: { a: 0, b: 1 },
      merges: [],
    },
  };
  const bytes = new TextEncoder().encode(JSON.stringify(json)).buffer;
  const encoder = await WasmEncoder.open(bytes, "tokenizer.json");
  assertEquals([...encoder.encode("ab")], [0, 1]);
  for (let i = 0; i < 60; i++) {
    assertThrows(() => encoder.encode("xyz"), NativeError, "aborted");
  }
  assertEquals([...encoder.encode("ba")], [1, 0]);
});

Deno.test("WasmEncoder.open() tells why the library refuses a file", async () => {
  const bytes = new TextEncoder().encode('{"a": 1}').buffer;
  const error = await assertRejects(
    () => WasmEncoder.open(bytes, "tokenizer.json"),
    CheckpointError,
  );
  assertStringIncludes(error.message, "tokenizer.json");
  assertStringIncludes(error.message, "Error(");
});

for (
  const { of, start } of [
    { of: TOKENIZERS, start: "var binding = null;" },
    { of: XGRAMMAR, start: "let binding = null;" },
  ]
) {
  Deno.test(`transform() refuses another version of ${of.name}`, async () => {
    await of.info();
    const require = createRequire(import.meta.url);
    const source = await Deno.readTextFile(require.resolve(of.name));
    const { script, wasm } = transform(source, of);
    assertStringIncludes(script, "export function create(log)");
    assert(WebAssembly.validate(wasm));
    const without = (text: string) => source.replaceAll(text, "");
    for (
      const [changed, what] of [
        [without(start), "the start of the runtime was found 0 times"],
        [without('typeof importScripts=="function"'), "the worker flag"],
        [source + source, "2 embedded binaries"],
        ["", "0 embedded binaries"],
      ]
    ) {
      assertThrows(() => transform(changed, of), Error, what);
    }
  });
}

for (
  const { name, bundle } of [
    { name: "tokenizers", bundle: bundleTokenizer },
    { name: "xgrammar", bundle: bundleGrammar },
  ]
) {
  Deno.test(`bundle() writes ${name} once, and again when the file is another`, async () => {
    const folder = await Deno.makeTempDir();
    const out = new URL(`file://${folder}/build/`);
    const file = new URL(`${name}.js`, out);
    try {
      await bundle(out);
      const made = await Deno.readTextFile(file);
      await Deno.utime(file, 1, 1);
      await bundle(out);
      assertEquals((await Deno.stat(file)).mtime?.getTime(), 1000);
      await Deno.writeTextFile(file, "// another");
      await bundle(out);
      assertEquals(await Deno.readTextFile(file), made);
      await Deno.remove(new URL(`${name}.wasm`, out));
      await bundle(out);
      assertEquals([...Deno.readDirSync(out)].length, 2);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  });
}
