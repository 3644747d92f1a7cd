import { createHash, type Hash } from "node:crypto";
import { CheckpointError } from "../errors.ts";
import { exists } from "./exists.ts";

/** One file of a repository, as the hub lists it. */
export interface HubFile {
  readonly path: string;
  readonly size: number;
  /** SHA-256 of a large file. */
  readonly sha256?: string;
  /** Git's blob id of a small one. */
  readonly gitOid?: string;
}

/** How a file is downloaded. */
export interface DownloadFileOptions {
  readonly headers: HeadersInit;
  readonly signal?: AbortSignal;
  /** Told of bytes that are there, those of an earlier try included. */
  onBytes(bytes: number): void;
}

/** Tries in a row that bring no byte. */
const MAX_TRIES = 5;
const FIRST_PAUSE_MS = 200;
/** Between two looks at a file that another process writes: to wait for its lock heeds no signal. */
const LOCK_PAUSE_MS = 100;
/** A server that sends nothing for so long is taken for gone. */
const STALL_MS = 60_000;

/** The answer is final: another try would end alike. */
class Refused extends Error {}

/**
 * Downloads `url` to `path`, which appears whole or not at all: bytes go to `path.incomplete`, which
 * a later try continues, and are checked against the hub's hash before the rename. One process at a
 * time writes a file; the others wait for it.
 *
 * @throws CheckpointError when the bytes are not the ones that the hub promised
 */
export async function downloadFile(
  url: string,
  path: string,
  file: HubFile,
  options: DownloadFileOptions,
): Promise<void> {
  if (await exists(path)) return options.onBytes(file.size);
  const incomplete = `${path}.incomplete`;
  using target = await Deno.open(incomplete, {
    read: true,
    write: true,
    create: true,
  });
  while (!await target.tryLock(true)) {
    await pause(LOCK_PAUSE_MS, options.signal);
  }
  try {
    if (await exists(path)) {
      // Another finished it meanwhile; the name may be a new, empty file.
      await Deno.remove(incomplete).catch(() => {});
      return options.onBytes(file.size);
    }
    await fill(target, url, file, options);
    await target.sync();
    await Deno.rename(incomplete, path);
  } finally {
    await target.unlock();
  }
}

function newHash({ sha256, size }: HubFile): Hash {
  return sha256
    ? createHash("sha256")
    : createHash("sha1").update(`blob ${size}\0`);
}

async function fill(
  target: Deno.FsFile,
  url: string,
  file: HubFile,
  options: DownloadFileOptions,
) {
  const { size } = file;
  if ((await target.stat()).size > size) await target.truncate(0);
  let hash = newHash(file);
  let done = await hashFile(target, hash, options);
  for (let failures = 0; done < size;) {
    const before = done;
    try {
      for await (const bytes of request(url, done, file, options)) {
        if (bytes.restart) {
          await target.truncate(0);
          await target.seek(0, Deno.SeekMode.Start);
          options.onBytes(-done);
          hash = newHash(file);
          done = 0;
        }
        await writeAll(target, bytes.data);
        hash.update(bytes.data);
        done += bytes.data.length;
        options.onBytes(bytes.data.length);
      }
    } catch (error) {
      options.signal?.throwIfAborted();
      if (error instanceof Refused) throw error;
      failures = done > before ? 1 : failures + 1;
      if (failures >= MAX_TRIES) {
        throw new Error(
          `Cannot download ${file.path}: ${
            message(error)
          } (${done} of ${size} ` +
            "bytes are kept for the next try)",
          { cause: error },
        );
      }
      await pause(FIRST_PAUSE_MS * 2 ** failures, options.signal);
    }
  }
  const expected = file.sha256 ?? file.gitOid;
  const found = hash.digest("hex");
  if (expected !== undefined && found !== expected) {
    // Not to be continued.
    await target.truncate(0);
    throw new CheckpointError(
      `${file.path}: the download's ${file.sha256 ? "SHA-256" : "Git id"} is ` +
        `${found}, and the hub says ${expected}; it was thrown away`,
    );
  }
}

const message = (error: unknown) =>
  error instanceof Error ? error.message : String(error);

/** Takes up what an earlier try left. */
async function hashFile(
  target: Deno.FsFile,
  hash: Hash,
  { signal, onBytes }: DownloadFileOptions,
): Promise<number> {
  const buffer = new Uint8Array(1 << 20);
  let done = 0;
  for (;;) {
    signal?.throwIfAborted();
    const count = await target.read(buffer);
    if (count === null) break;
    hash.update(buffer.subarray(0, count));
    done += count;
  }
  onBytes(done);
  return done;
}

async function writeAll(target: Deno.FsFile, data: Uint8Array) {
  for (let at = 0; at < data.length;) {
    at += await target.write(data.subarray(at));
  }
}

async function pause(ms: number, signal: AbortSignal | undefined) {
  await new Promise<void>((resolve) => {
    const timer = setTimeout(done, ms);
    function done() {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    }
    signal?.addEventListener("abort", done);
  });
  signal?.throwIfAborted();
}

interface Piece {
  data: Uint8Array;
  /** The server began anew: what was there does not count. */
  restart: boolean;
}

/** The bytes of a file from `from` on. */
async function* request(
  url: string,
  from: number,
  { path, size }: HubFile,
  { headers, signal }: DownloadFileOptions,
): AsyncGenerator<Piece> {
  const stall = new AbortController();
  let timer: ReturnType<typeof setTimeout> | undefined;
  const alive = () => {
    clearTimeout(timer);
    timer = setTimeout(
      () => stall.abort(new Error(`nothing came for ${STALL_MS / 1000} s`)),
      STALL_MS,
    );
  };
  alive();
  try {
    const response = await fetch(url, {
      headers: {
        ...Object.fromEntries(new Headers(headers)),
        // Hashes and ranges are of the bytes as they are.
        "accept-encoding": "identity",
        ...(from > 0 ? { range: `bytes=${from}-` } : {}),
      },
      signal: signal ? AbortSignal.any([signal, stall.signal]) : stall.signal,
    });
    if (!response.ok || !response.body) {
      await response.body?.cancel();
      const what =
        `Cannot download ${path}: the hub answers ${response.status}`;
      const final = response.status < 500 && response.status !== 408 &&
        response.status !== 429;
      throw final ? new Refused(what) : new Error(what);
    }
    let restart = from > 0 && response.status !== 206;
    let room = restart ? size : size - from;
    for await (const data of response.body) {
      alive();
      room -= data.length;
      if (room < 0) {
        throw new Refused(
          `Cannot download ${path}: it is longer than the ${size} bytes that the hub says`,
        );
      }
      yield { data, restart };
      restart = false;
    }
    if (room > 0) throw new Error("the connection ended early");
  } finally {
    clearTimeout(timer);
  }
}
