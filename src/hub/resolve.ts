import { downloadModel, type DownloadOptions } from "./download.ts";
import { exists } from "./exists.ts";
import { parseHubId } from "./id.ts";
import { type HubSettings, hubSettings } from "./settings.ts";

/**
 * The folder of a checkpoint: the path itself when there is such a folder, or when it cannot name a
 * model of the hub; else the model's folder in the hub's cache, downloaded if need be.
 */
export async function resolveCheckpoint(
  path: string | URL,
  options: DownloadOptions,
): Promise<string | URL> {
  if (path === "") throw new Deno.errors.NotFound("The path is empty");
  const id = typeof path === "string" ? parseHubId(path) : undefined;
  if (id === undefined || await exists(id.repo)) return path;
  // Nobody is asked for permissions because of a folder that is not there.
  const env = await granted({ name: "env", variable: "HF_ENDPOINT" });
  const settings = env ? hubSettings() : undefined;
  if (!settings || !settings.offline && !await mayAsk(settings)) {
    throw new Deno.errors.NotFound(
      `${path}: no such folder; a model of the hub is downloaded only with ` +
        "--allow-net, --allow-env and --allow-write",
    );
  }
  return await downloadModel(id, settings, options);
}

function mayAsk({ hubUrl }: HubSettings): Promise<boolean> {
  return granted({ name: "net", host: new URL(hubUrl).host });
}

async function granted(permission: Deno.PermissionDescriptor) {
  return (await Deno.permissions.query(permission)).state === "granted";
}
