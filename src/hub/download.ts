/**
 * Checkpoints from the Hugging Face hub, kept in the cache that its other clients use:
 * `models--OWNER--NAME/{blobs,refs,snapshots}`.
 */
import { dirname, join, relative } from "node:path";
import { CheckpointError } from "../errors.ts";
import { downloadFile, type HubFile } from "./download_file.ts";
import type { HubId } from "./id.ts";
import type { HubSettings } from "./settings.ts";

/** How far a download is. */
export interface DownloadOptions {
  readonly signal?: AbortSignal;
  /** Bytes of all files. */
  readonly onProgress?: (loaded: number, total: number) => void;
}

/** What a checkpoint's folder needs; no other weights, no pictures. */
const WANTED = /^[\w.-]+\.(json|safetensors|jinja)$/;

/** The hub could not be asked. */
class Unreachable extends Error {}

/**
 * Brings a model to this machine, and returns its folder. What is cached is not downloaded again;
 * without a connection the revision that was current when it was last asked for is used.
 *
 * @throws Deno.errors.NotFound for a model or revision that the hub does not have, or that is
 * neither reachable nor cached; Deno.errors.PermissionDenied for one that needs a token;
 * CheckpointError for bytes that do not fit their hash; the signal's reason
 */
export async function downloadModel(
  id: HubId,
  settings: HubSettings,
  options: DownloadOptions = {},
): Promise<string> {
  const folder = join(
    settings.cacheDir,
    `models--${id.repo.replaceAll("/", "--")}`,
  );
  if (settings.offline) return await cachedSnapshot(id, folder, undefined);
  let listing: Listing;
  try {
    listing = await list(id, settings, options.signal);
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    return await cachedSnapshot(id, folder, error);
  }
  const snapshot = join(folder, "snapshots", listing.commit);
  await fetchAll(id, settings, folder, snapshot, listing, options);
  if (id.revision !== listing.commit) {
    const ref = join(folder, "refs", id.revision);
    await Deno.mkdir(dirname(ref), { recursive: true });
    await Deno.writeTextFile(ref, listing.commit);
  }
  return snapshot;
}

interface Listing {
  commit: string;
  files: HubFile[];
}

/** What the hub has, through its own client. */
async function list(
  { repo, revision }: HubId,
  { hubUrl, accessToken }: HubSettings,
  signal: AbortSignal | undefined,
): Promise<Listing> {
  const { HubApiError, listFiles, modelInfo } = await import(
    "@huggingface/hub"
  );
  const ask: typeof fetch = async (input, init) => {
    try {
      return await fetch(input, { ...init, signal });
    } catch (cause) {
      signal?.throwIfAborted();
      if (cause instanceof TypeError) {
        throw new Unreachable(`${hubUrl} cannot be reached`, { cause });
      }
      throw cause;
    }
  };
  const common = { hubUrl, accessToken, fetch: ask };
  try {
    const { sha: commit } = await modelInfo({
      ...common,
      name: repo,
      revision,
      additionalFields: ["sha"],
    });
    if (!/^[0-9a-f]{40}$/.test(commit)) {
      throw new CheckpointError(`${repo}: the hub names no commit of it`);
    }
    const files: HubFile[] = [];
    const designation = { type: "model", name: repo } as const;
    for await (
      const entry of listFiles({
        ...common,
        repo: designation,
        revision: commit,
      })
    ) {
      if (entry.type !== "file" || !WANTED.test(entry.path)) continue;
      const { path, size, oid, lfs } = entry;
      files.push(
        lfs
          ? { path, size: lfs.size, sha256: lfs.oid }
          : { path, size, gitOid: oid },
      );
    }
    return { commit, files };
  } catch (error) {
    if (!(error instanceof HubApiError)) throw error;
    const what = `${repo}@${revision}`;
    // The hub does not tell whether what it hides exists.
    if (error.statusCode === 401 || error.statusCode === 403) {
      throw new Deno.errors.PermissionDenied(
        `${what}: does not exist on ${hubUrl}, or needs an access token in HF_TOKEN`,
        { cause: error },
      );
    }
    if (error.statusCode === 404) {
      throw new Deno.errors.NotFound(`${what}: does not exist on ${hubUrl}`, {
        cause: error,
      });
    }
    if (error.statusCode >= 500) {
      throw new Unreachable(`${hubUrl} answers ${error.statusCode}`, {
        cause: error,
      });
    }
    throw error;
  }
}

async function fetchAll(
  { repo }: HubId,
  { hubUrl, accessToken }: HubSettings,
  folder: string,
  snapshot: string,
  { commit, files }: Listing,
  { signal, onProgress }: DownloadOptions,
) {
  const total = files.reduce((sum, { size }) => sum + size, 0);
  let loaded = 0;
  await Deno.mkdir(join(folder, "blobs"), { recursive: true });
  await Deno.mkdir(snapshot, { recursive: true });
  for (const file of files) {
    const blob = join(folder, "blobs", blobName(file));
    await downloadFile(
      `${hubUrl}/${repo}/resolve/${commit}/${file.path}`,
      blob,
      file,
      {
        headers: accessToken ? { authorization: `Bearer ${accessToken}` } : {},
        signal,
        onBytes(bytes) {
          loaded += bytes;
          onProgress?.(loaded, total);
        },
      },
    );
    await link(blob, join(snapshot, file.path));
  }
}

/** A blob's name is its hash; one without would not be told from others. */
function blobName({ path, sha256, gitOid }: HubFile): string {
  const name = sha256 ?? gitOid;
  if (name === undefined || !/^[0-9a-f]{40,64}$/.test(name)) {
    throw new CheckpointError(`${path}: the hub gives no hash of it`);
  }
  return name;
}

async function link(blob: string, path: string) {
  const target = relative(dirname(path), blob);
  try {
    if (await Deno.readLink(path) === target) return;
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  // Renamed into place: whoever reads meanwhile sees the old one or the new one.
  const fresh = `${path}.${crypto.randomUUID()}.tmp`;
  await Deno.symlink(target, fresh);
  await Deno.rename(fresh, path);
}

async function cachedSnapshot(
  { repo, revision }: HubId,
  folder: string,
  cause: Unreachable | undefined,
): Promise<string> {
  const why = cause?.message ?? "HF_HUB_OFFLINE is set";
  try {
    const commit = /^[0-9a-f]{40}$/.test(revision)
      ? revision
      : (await Deno.readTextFile(join(folder, "refs", revision))).trim();
    const snapshot = join(folder, "snapshots", commit);
    await Deno.stat(join(snapshot, "config.json"));
    return snapshot;
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    throw new Deno.errors.NotFound(
      `${repo}@${revision}: is not in the cache ${folder}, and ${why}`,
      { cause },
    );
  }
}
