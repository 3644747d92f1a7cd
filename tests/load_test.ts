/** What loadModel() does with bad input, and with the permissions, threads and kernels that it gets. */
import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import {
  CheckpointError,
  DisposedError,
  loadModel,
  type LoadProgress,
  NativeError,
} from "../mod.ts";
import { openLibraries } from "./support/open_library.ts";
import { makeCheckpoint } from "./support/checkpoint.ts";
import { reducedConfig } from "./support/family.ts";
import { changeJson, inFolder } from "./support/folder.ts";
import {
  assertSameBits,
  cpuKernelSets,
  type Floats,
  kernelSets,
} from "./support/ops.ts";

// Before the tests: a library opened within one counts as a leak of it.
openLibraries();

const ROOT = new URL("../", import.meta.url);
const NANO = new URL("models/nano", ROOT).pathname;
const SUFFIX = Deno.build.os === "darwin" ? "dylib" : "so";
const LIBRARY = new URL(`build/libmoela.${SUFFIX}`, ROOT).pathname;

/** Expects an error of a class whose message has all the words. */
async function rejects(
  promise: Promise<unknown>,
  kind: NonNullable<Parameters<typeof assertRejects<Error>>[1]>,
  ...words: string[]
) {
  const error = await assertRejects(() => promise, kind);
  for (const word of words) assertStringIncludes(error.message, word);
}

/** A copy of nano that may be spoilt. */
function inNano(test: (folder: string) => Promise<void>) {
  return inFolder(async (folder) => {
    for await (const { name } of Deno.readDir(NANO)) {
      await Deno.copyFile(`${NANO}/${name}`, `${folder}/${name}`);
    }
    await test(folder);
  });
}

Deno.test("loadModel() refuses a shard that is cut short or missing", () =>
  inNano(async (folder) => {
    const name = "model-00002-of-00002.safetensors";
    const path = `${folder}/${name}`;
    const { size } = await Deno.stat(path);
    await Deno.truncate(path, size - 1);
    await rejects(loadModel(folder), CheckpointError, path, "truncated");
    await Deno.truncate(path, 4);
    await rejects(loadModel(folder), CheckpointError, path);
    await Deno.remove(path);
    await rejects(loadModel(folder), CheckpointError, path, "missing");
  }));

Deno.test("loadModel() refuses another architecture", () =>
  inNano(async (folder) => {
    await changeJson(`${folder}/config.json`, (json) => {
      json.model_type = "llama";
      json.architectures = ["LlamaForCausalLM"];
    });
    await rejects(loadModel(folder), CheckpointError, "config.json", "llama");
  }));

Deno.test("loadModel() refuses a tokenizer that disagrees with the vocabulary", () =>
  inNano(async (folder) => {
    await changeJson(`${folder}/tokenizer.json`, (json) => {
      (json.added_tokens as { id: number }[])[0].id = 4096;
    });
    await rejects(
      loadModel(folder),
      CheckpointError,
      `${folder}/tokenizer.json`,
      "4096",
      "vocab_size",
    );
    await Deno.writeTextFile(`${folder}/tokenizer.json`, "{");
    await rejects(loadModel(folder), CheckpointError, "tokenizer.json");
  }));

Deno.test("loadModel() works without a tokenizer, on ids", () =>
  inFolder(async (folder) => {
    await makeCheckpoint(folder, reducedConfig("v2-lite"));
    await using model = await loadModel(folder);
    assertEquals((await model.forward([1, 2])).length, 200);
    let message = "";
    try {
      model.generate("text");
    } catch (error) {
      assert(error instanceof TypeError);
      message = error.message;
    }
    assertStringIncludes(message, "tokenizer.json");
  }));

Deno.test("loadModel() rejects with NotFound for a path that does not exist", async () => {
  const { NotFound } = Deno.errors;
  await rejects(loadModel(`${NANO}/absent`), NotFound);
  await rejects(loadModel(new URL("absent/", import.meta.url)), NotFound);
  await rejects(loadModel(""), NotFound);
  await rejects(
    loadModel(`${NANO}/config.json`),
    CheckpointError,
    "config.json",
    "folder",
  );
});

Deno.test("loadModel() rejects an URL of no file", async () => {
  const url = new URL("https://example.com");
  await rejects(loadModel(url), TypeError, "file:");
});

Deno.test("loadModel() takes undefined for absent", async () => {
  await using model = await loadModel(NANO, {
    device: undefined,
    weights: undefined,
    threads: undefined,
    kernels: undefined,
    onProgress: undefined,
    signal: undefined,
    cacheBytes: undefined,
    prefixCacheBytes: undefined,
    maxBatch: undefined,
    batchInvariant: undefined,
  });
  assertEquals(model.config.vocab_size, 4096);
});

Deno.test("loadModel() rejects with the signal's reason before and during a load", async () => {
  const reason = new Error("enough");
  const aborted = AbortSignal.abort(reason);
  const rejectsWith = async (promise: Promise<unknown>) => {
    const error = await assertRejects(() => promise, Error);
    assert(error === reason);
  };
  await rejectsWith(loadModel(NANO, { signal: aborted }));
  for (const weights of ["auto", "f32"] as const) {
    // At the first word of progress, at a later one, and at whatever point a task later is.
    for (const after of [1, 20]) {
      const controller = new AbortController();
      let calls = 0;
      await rejectsWith(loadModel(NANO, {
        weights,
        signal: controller.signal,
        onProgress() {
          if (++calls === after) controller.abort(reason);
        },
      }));
      assertEquals(calls, after);
    }
    const controller = new AbortController();
    const load = loadModel(NANO, { weights, signal: controller.signal });
    setTimeout(() => controller.abort(reason), 1);
    await rejectsWith(load);
  }
});

Deno.test("loadModel() leaves a signal that aborts afterwards alone", async () => {
  const controller = new AbortController();
  await using model = await loadModel(NANO, { signal: controller.signal });
  controller.abort();
  assertEquals((await model.forward([1])).length, 4096);
});

Deno.test("loadModel() rejects with what onProgress throws", () =>
  rejects(
    loadModel(NANO, {
      onProgress() {
        throw new RangeError("no more");
      },
    }),
    RangeError,
    "no more",
  ));

Deno.test("loadModel() tells a progress that only grows, to the total", async () => {
  for (const weights of ["auto", "f32"] as const) {
    const all: LoadProgress[] = [];
    await using _ = await loadModel(NANO, {
      weights,
      onProgress: (progress) => all.push({ ...progress }),
    });
    assert(all.length > 10);
    let last = 0;
    for (const { stage, loaded, total } of all) {
      const work = weights === "f32" ? "convert" : "read";
      assertEquals(stage, loaded < total ? work : "prepare");
      assertEquals(total, all[0].total);
      assert(loaded >= last && loaded <= total, `${loaded} after ${last}`);
      last = loaded;
    }
    assertEquals(last, all[0].total);
    let bytes = 0;
    for await (const { name } of Deno.readDir(NANO)) {
      if (!name.endsWith(".safetensors")) continue;
      bytes += (await Deno.stat(`${NANO}/${name}`)).size;
    }
    assertEquals(last, bytes);
  }
});

Deno.test("loadModel() gives the same bits with any number of threads", async () => {
  const tokens = Array.from({ length: 150 }, (_, i) => 31 * i % 4096);
  let expected: Floats | undefined;
  for (const threads of [1, 2, 3, 8]) {
    await using model = await loadModel(NANO, { threads });
    assertEquals(model.inspect().device.info().threads, threads);
    const logits = await model.forward(tokens) as Floats;
    expected ??= logits;
    assertSameBits(logits, expected, `${threads} threads`);
  }
});

Deno.test("loadModel() takes kernels by name, and says which there are", async () => {
  for (
    const kernels of ["auto", "reference", "avx2", "avx512", "amx"] as const
  ) {
    if (kernels === "auto" || kernelSets.includes(kernels)) {
      await using model = await loadModel(NANO, { kernels });
      const used = model.inspect().device.info().kernels;
      const best = kernelSets.at(-1) === "sm90"
        ? "sm90-persistent"
        : kernelSets.at(-1);
      assertEquals(used, kernels === "auto" ? best : kernels);
      assertEquals(
        model.device,
        cpuKernelSets.includes(used) ? "cpu" : "cuda:0",
      );
    } else {
      await rejects(
        loadModel(NANO, { kernels }),
        NativeError,
        `'${kernels}'`,
        "reference",
      );
    }
  }
});

Deno.test("loadModel() opens the same checkpoint many times over", async () => {
  const models = await Promise.all(
    Array.from({ length: 4 }, () => loadModel(NANO, { threads: 1 })),
  );
  const logits = await Promise.all(models.map((model) => model.forward([5])));
  for (const row of logits) assertEquals(row, logits[0]);
  for (const model of models) await model[Symbol.asyncDispose]();
  await rejects(models[0].forward([5]), DisposedError);
});

/** Runs a program of its own, which gets `loadModel`, with these flags. */
async function program(
  body: string,
  flags: readonly string[],
  env: Record<string, string> = {},
) {
  let result = { code: -1, out: "", err: "" };
  await inFolder(async (folder) => {
    await Deno.writeTextFile(
      `${folder}/main.ts`,
      `import { loadModel } from ${JSON.stringify(`${ROOT}mod.ts`)};\n` +
        `const path = ${JSON.stringify(NANO)};\n${body}`,
    );
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: [
        "run",
        "--quiet",
        "--no-prompt",
        "--no-lock",
        `--config=${new URL("deno.json", ROOT).pathname}`,
        ...flags,
        `${folder}/main.ts`,
      ],
      env,
    }).output();
    const utf8 = new TextDecoder();
    result = { code, out: utf8.decode(stdout), err: utf8.decode(stderr) };
  });
  return result;
}

const NAME_ERROR = `try {
  await loadModel(path);
  console.log("loaded");
} catch (error) {
  console.log(error instanceof Error ? \`\${error.name}: \${error.message}\` : error);
}`;

Deno.test("loadModel() needs read and one file of ffi, and nothing else", async () => {
  const ffi = `--allow-ffi=${LIBRARY}`;
  const story = `await using model = await loadModel(path, { threads: 1 });
console.log(await model.generate("Once upon a time", { maxTokens: 8 }).text());`;
  const { code, out, err } = await program(story, ["--allow-read", ffi]);
  assertEquals({ code, err }, { code: 0, err: "" });
  assert(out.trim().length > 10, out);
  for (const flags of [[ffi], ["--allow-read"], ["--allow-read", "-E"]]) {
    const { code, out } = await program(NAME_ERROR, flags);
    assertEquals(code, 0);
    assertStringIncludes(out, "NotCapable: ");
  }
});

Deno.test("loadModel() needs no further permission to say that there is no such folder", async () => {
  const ffi = `--allow-ffi=${LIBRARY}`;
  const body = NAME_ERROR.replace("path", '"models/absent"');
  for (const hub of [[], ["-N"], ["-N=127.0.0.1", "-E"]]) {
    const { out } = await program(body, ["--allow-read", ffi, ...hub]);
    assertStringIncludes(out, "NotFound: models/absent: no such folder");
    assertStringIncludes(out, "--allow-net");
  }
  // With the permissions that the README names, the hub is asked.
  const { out } = await program(
    body,
    ["--allow-read", ffi, "-N", "-E", `--allow-write=${Deno.cwd()}/build`],
    { HF_ENDPOINT: "http://127.0.0.1:9" },
  );
  assertStringIncludes(out, "NotFound: models/absent@main");
  assertStringIncludes(out, "cannot be reached");
});

Deno.test("loadModel() names the path and the task when the library is missing", async () => {
  // Of the CPU: where there is a GPU, its library would do.
  const body = NAME_ERROR.replace("path", 'path, { device: "cpu" }');
  const { out } = await program(body, ["-A"], {
    MOELA_LIBRARY: "/nonexistent/libmoela.so",
  });
  assertStringIncludes(out, "NativeError: ");
  assertStringIncludes(out, "/nonexistent/libmoela.so");
  assertStringIncludes(out, "deno task build");
  // A file that is no library.
  const other = await program(body, ["-A"], {
    MOELA_LIBRARY: `${NANO}/config.json`,
  });
  assertStringIncludes(other.out, "NativeError: ");
  assertStringIncludes(other.out, `${NANO}/config.json`);
});
