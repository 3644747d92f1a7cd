import { join } from "node:path";

/** Where the hub is, where its files are kept, and who asks. */
export interface HubSettings {
  /** Without a slash at the end. */
  readonly hubUrl: string;
  /** The hub's standard cache folder. */
  readonly cacheDir: string;
  readonly accessToken?: string;
  /** Use what is cached, ask nobody. */
  readonly offline: boolean;
}

/** The settings that all of the hub's clients read from the environment. */
export function hubSettings(): HubSettings {
  const { env } = Deno;
  const home = () =>
    env.get("HF_HOME") ??
      join(
        // Not homedir(), which wants a permission more.
        env.get("XDG_CACHE_HOME") ??
          join(env.get("HOME") ?? env.get("USERPROFILE") ?? "", ".cache"),
        "huggingface",
      );
  return {
    hubUrl: (env.get("HF_ENDPOINT") || "https://huggingface.co").replace(
      /\/+$/,
      "",
    ),
    cacheDir: env.get("HF_HUB_CACHE") ?? env.get("HUGGINGFACE_HUB_CACHE") ??
      join(home(), "hub"),
    accessToken: env.get("HF_TOKEN") || undefined,
    offline: ["1", "true"].includes(env.get("HF_HUB_OFFLINE") ?? ""),
  };
}
