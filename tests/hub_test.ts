/** Models of the hub: downloads that go on where they were cut, and what is refused. */
import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { createHash } from "node:crypto";
import { CheckpointError, loadModel } from "../mod.ts";
import { openLibraries } from "./support/open_library.ts";
import { downloadModel } from "../src/hub/download.ts";
import { parseHubId } from "../src/hub/id.ts";
import type { HubSettings } from "../src/hub/settings.ts";
import { type HubServer, serveHub } from "./support/hub_server.ts";

openLibraries();

const ID = { repo: "owner/name", revision: "main" };

function someFiles(): Map<string, Uint8Array<ArrayBuffer>> {
  const large = Uint8Array.from({ length: 60_000 }, (_, i) => (i * 31) >> 3);
  return new Map([
    ["config.json", new TextEncoder().encode("{}")],
    ["model.safetensors", large],
    ["README.md", new TextEncoder().encode("not wanted")],
    ["pytorch_model.bin", new Uint8Array(2000)],
  ]);
}

/** A server, an empty cache, and settings that name both. */
async function setUp(files = someFiles()): Promise<
  & { server: HubServer; settings: HubSettings; cacheDir: string }
  & AsyncDisposable
> {
  const server = serveHub(files);
  const cacheDir = await Deno.makeTempDir();
  return {
    server,
    cacheDir,
    settings: { hubUrl: server.url, cacheDir, offline: false },
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]();
      await Deno.remove(cacheDir, { recursive: true });
    },
  };
}

Deno.test("parseHubId() reads owner/name and a revision", () => {
  assertEquals(parseHubId("a/b"), { repo: "a/b", revision: "main" });
  assertEquals(parseHubId("deepseek-ai/DeepSeek-V2-Lite-Chat@refs/pr/1"), {
    repo: "deepseek-ai/DeepSeek-V2-Lite-Chat",
    revision: "refs/pr/1",
  });
  const not = ["/a/b", "./a/b", "../a", "a", "a/b/c", "a/..", "a/b@", "a b/c"];
  for (const text of not) assertEquals(parseHubId(text), undefined, text);
});

Deno.test("loadModel() downloads nano from a hub, and then needs none", async () => {
  const nano = new URL("../models/nano/", import.meta.url);
  const files = new Map<string, Uint8Array<ArrayBuffer>>();
  for await (const { name } of Deno.readDir(nano)) {
    files.set(name, await Deno.readFile(new URL(name, nano)));
  }
  await using at = await setUp(files);
  Deno.env.set("HF_ENDPOINT", at.server.url);
  Deno.env.set("HF_HUB_CACHE", at.cacheDir);
  try {
    const progress: number[] = [];
    let total = 0;
    {
      await using model = await loadModel("owner/name", {
        onProgress(progressed) {
          if (progressed.stage !== "download") return;
          progress.push(progressed.loaded);
          total = progressed.total;
        },
      });
      const options = { temperature: 0, maxTokens: 5 };
      await using local = await loadModel(nano);
      assertEquals(
        await model.generate("Once upon", options).text(),
        await local.generate("Once upon", options).text(),
      );
    }
    assertEquals(progress.at(-1), total);
    assert(progress.every((loaded, i) => i === 0 || loaded >= progress[i - 1]));
    const requests = at.server.asked.length;
    await using _again = await loadModel("owner/name");
    assertEquals(at.server.asked.length, requests);
    at.server.apiStatus = 503;
    await using _offline = await loadModel("owner/name");
  } finally {
    Deno.env.delete("HF_ENDPOINT");
    Deno.env.delete("HF_HUB_CACHE");
  }
});

Deno.test("downloadModel() keeps what the hub's other clients find", async () => {
  await using at = await setUp();
  const folder = await downloadModel(ID, at.settings);
  const repo = `${at.cacheDir}/models--owner--name`;
  assertEquals(folder, `${repo}/snapshots/${at.server.commit}`);
  assertEquals(
    await Deno.readTextFile(`${repo}/refs/main`),
    at.server.commit,
  );
  const names = Array.from(Deno.readDirSync(folder), ({ name }) => name).sort();
  assertEquals(names, ["config.json", "model.safetensors"]);
  assert((await Deno.lstat(`${folder}/model.safetensors`)).isSymlink);
  assertStringIncludes(
    await Deno.readLink(`${folder}/model.safetensors`),
    "../../blobs/",
  );
  assertEquals(
    await Deno.readFile(`${folder}/model.safetensors`),
    at.server.files.get("model.safetensors"),
  );
});

Deno.test("downloadModel() goes on where a connection was cut", async () => {
  await using at = await setUp();
  const path = "model.safetensors";
  at.server.faults.set(path, [
    { cutAfter: 20_000 },
    { status: 503 },
    { cutAfter: 10_000 },
  ]);
  const folder = await downloadModel(ID, at.settings);
  const bytes = at.server.files.get(path);
  assertEquals(await Deno.readFile(`${folder}/${path}`), bytes);
  const ranges = at.server.asked.filter((asked) => asked.path === path)
    .map(({ range }) => range === null ? 0 : Number(/\d+/.exec(range)));
  // What had come is never asked for again.
  assertEquals(ranges.length, 4);
  assert(ranges[1] > 0 && ranges[3] > ranges[1], ranges.join());
});

Deno.test("downloadModel() begins anew when the server knows no ranges", async () => {
  await using at = await setUp();
  const path = "model.safetensors";
  at.server.faults.set(path, [{ cutAfter: 8192 }, { ignoreRange: true }]);
  const seen: number[] = [];
  const folder = await downloadModel(ID, at.settings, {
    onProgress: (loaded) => seen.push(loaded),
  });
  const bytes = at.server.files.get(path)!;
  assertEquals(await Deno.readFile(`${folder}/${path}`), bytes);
  assertEquals(seen.at(-1), bytes.length + 2);
});

Deno.test("downloadModel() goes on after an abort, in a later call", async () => {
  await using at = await setUp();
  const path = "model.safetensors";
  at.server.faults.set(path, [{ slowly: 5 }]);
  const controller = new AbortController();
  const reason = new Error("enough");
  const error = await assertRejects(() =>
    downloadModel(ID, at.settings, {
      signal: controller.signal,
      onProgress: (loaded) => loaded > 10_000 && controller.abort(reason),
    })
  );
  assertEquals(error, reason);
  await downloadModel(ID, at.settings);
  const last = at.server.asked.at(-1);
  assert(last?.range && Number(/\d+/.exec(last.range)) >= 10_000 - 2);
});

Deno.test("downloadModel() throws away bytes that do not fit the hub's hash", async () => {
  for (const path of ["config.json", "model.safetensors"]) {
    await using at = await setUp();
    at.server.wrongHashes.add(path);
    const error = await assertRejects(
      () => downloadModel(ID, at.settings),
      CheckpointError,
      path,
    );
    assertStringIncludes(error.message, "the hub says");
    at.server.wrongHashes.clear();
    const folder = await downloadModel(ID, at.settings);
    assertEquals(
      await Deno.readFile(`${folder}/${path}`),
      at.server.files.get(path),
    );
  }
});

Deno.test("downloadModel() gives up after several tries, and keeps what came", async () => {
  await using at = await setUp();
  const path = "model.safetensors";
  at.server.faults.set(path, [
    { cutAfter: 4096 },
    ...Array.from({ length: 10 }, () => ({ status: 502 })),
  ]);
  await assertRejects(
    () => downloadModel(ID, at.settings),
    Error,
    "Cannot download model.safetensors: ",
  );
});

Deno.test("downloadModel() says what the hub does not have or hides", async () => {
  await using at = await setUp();
  await assertRejects(
    () => downloadModel({ repo: "owner/other", revision: "main" }, at.settings),
    Deno.errors.NotFound,
    "owner/other@main: does not exist",
  );
  at.server.token = "secret";
  await assertRejects(
    () => downloadModel(ID, at.settings),
    Deno.errors.PermissionDenied,
    "HF_TOKEN",
  );
  await downloadModel(ID, { ...at.settings, accessToken: "hf_wrong" })
    .catch((error) => assert(error instanceof Deno.errors.PermissionDenied));
  at.server.token = "hf_secret";
  await downloadModel(ID, { ...at.settings, accessToken: "hf_secret" });
});

Deno.test("downloadModel() says when nothing is cached and nobody can be asked", async () => {
  await using at = await setUp();
  await assertRejects(
    () => downloadModel(ID, { ...at.settings, offline: true }),
    Deno.errors.NotFound,
    "HF_HUB_OFFLINE",
  );
  at.server.apiStatus = 500;
  await assertRejects(
    () => downloadModel(ID, at.settings),
    Deno.errors.NotFound,
    "answers 500",
  );
  await assertRejects(
    () => downloadModel(ID, { ...at.settings, hubUrl: "http://127.0.0.1:9" }),
    Deno.errors.NotFound,
    "cannot be reached",
  );
});

Deno.test("downloadModel() downloads once for two callers", async () => {
  await using at = await setUp();
  at.server.faults.set("model.safetensors", [{ slowly: 5 }]);
  const [one, other] = await Promise.all([
    downloadModel(ID, at.settings),
    downloadModel(ID, at.settings),
  ]);
  assertEquals(one, other);
  const asked = at.server.asked.filter(({ path }) =>
    path === "model.safetensors"
  );
  assertEquals(asked.length, 1);
});

Deno.test("downloadModel() waits for another process, and no longer than its signal", async () => {
  await using at = await setUp();
  const bytes = at.server.files.get("config.json")!;
  const hash = createHash("sha1").update(`blob ${bytes.length}\0`);
  const blobs = `${at.cacheDir}/models--owner--name/blobs`;
  await Deno.mkdir(blobs, { recursive: true });
  using other = await Deno.open(
    `${blobs}/${hash.update(bytes).digest("hex")}.incomplete`,
    { write: true, create: true },
  );
  await other.lock(true);
  const reason = new Error("enough");
  const error = await assertRejects(() =>
    downloadModel(ID, at.settings, { signal: after(150) })
  );
  assertEquals(error, reason);
  const waiting = downloadModel(ID, at.settings);
  await other.unlock();
  await waiting;

  function after(milliseconds: number): AbortSignal {
    const controller = new AbortController();
    setTimeout(() => controller.abort(reason), milliseconds);
    return controller.signal;
  }
});
