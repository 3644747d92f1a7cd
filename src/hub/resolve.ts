import { downloadModel, type DownloadOptions } from "./download.ts";
import { parseHubId } from "./id.ts";
import { hubSettings } from "./settings.ts";

/**
 * The folder of a checkpoint: the path itself when there is such a folder, or when it cannot name a
 * model of the hub; else the model's folder in the hub's cache, downloaded if need be.
 */
export async function resolveCheckpoint(
  path: string | URL,
  options: DownloadOptions,
): Promise<string | URL> {
  const id = typeof path === "string" ? parseHubId(path) : undefined;
  if (id === undefined || await exists(id.repo)) return path;
  const settings = hubSettings();
  const { host } = new URL(settings.hubUrl);
  const { state } = await Deno.permissions.query({ name: "net", host });
  if (state === "denied") {
    throw new Deno.errors.NotFound(
      `${path}: no such folder; it is downloaded from ${settings.hubUrl} only with --allow-net`,
    );
  }
  return await downloadModel(id, settings, options);
}

async function exists(path: string): Promise<boolean> {
  try {
    await Deno.stat(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}
