/**
 * Bundles the chat page of `src/server/page/` into the folder that `GET /`
 * serves: one script, one style sheet, index.html and an icon, which load
 * nothing from elsewhere.
 *
 * @module
 */

import type { BuildOptions, Plugin } from "esbuild";
import { fileURLToPath } from "node:url";

const PAGE = new URL("page/", import.meta.url);

/** Files that are served as they are. */
const COPIED = ["index.html", "icon.svg"];

/** Loads the page's packages, which puts them into Deno's cache. */
const loadPackages = () =>
  Promise.all([
    import("marked"),
    import("dompurify"),
    // The package itself needs a window.
    import("uplot/package.json", { with: { type: "json" } }),
  ]);

const PACKAGE_FILES = ["marked", "dompurify", "uplot"];

/** Finds packages where Deno keeps them: there is no node_modules folder. */
const packages: Plugin = {
  name: "packages",
  setup({ onResolve }) {
    onResolve({ filter: /^[a-z@]/ }, ({ path, kind }) => {
      if (kind === "entry-point") return undefined;
      return { path: fileURLToPath(import.meta.resolve(path)) };
    });
  },
};

/** A hash of all that the page is made from. */
async function digest(): Promise<string> {
  const parts: string[] = [await Deno.readTextFile(new URL(import.meta.url))];
  await loadPackages();
  for (const name of PACKAGE_FILES) {
    parts.push(await Deno.readTextFile(new URL(import.meta.resolve(name))));
  }
  const folders = [PAGE, new URL("style/", PAGE)];
  for (const folder of folders) {
    const names = [...Deno.readDirSync(folder)]
      .filter(({ isFile }) => isFile).map(({ name }) => name).sort();
    for (const name of names) {
      parts.push(name, await Deno.readTextFile(new URL(name, folder)));
    }
  }
  const bytes = new TextEncoder().encode(JSON.stringify(parts));
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
}

/**
 * Makes `page/` in a folder, unless the one that is there came from the same
 * sources.
 *
 * @param outDir the folder; its URL ends with a slash
 * @throws {Error} when a source has a mistake
 *
 * @example
 * ```ts ignore
 * await bundlePage(new URL("../../build/", import.meta.url));
 * ```
 */
export async function bundlePage(outDir: URL): Promise<void> {
  const out = new URL("page/", outDir);
  const stamp = new URL("page.id", outDir);
  const id = await digest();
  const kept = await Deno.readTextFile(stamp).catch(() => "");
  if (kept === id) return;
  const fresh = new URL(`page.${crypto.randomUUID()}.tmp/`, outDir);
  await Deno.mkdir(fresh, { recursive: true });
  const local = (name: string) => fileURLToPath(new URL(name, PAGE));
  const shared: BuildOptions = {
    outdir: fileURLToPath(fresh),
    bundle: true,
    minify: true,
    format: "iife",
    target: ["chrome123", "firefox120", "safari17.5"],
    // The packages' copyright notices stay.
    legalComments: "eof",
    logLevel: "silent",
    plugins: [packages],
  };
  const { build, stop } = await import("esbuild");
  try {
    const scripts = { page: local("main.ts"), theme: local("theme.ts") };
    await build({ ...shared, entryPoints: scripts });
    await build({ ...shared, entryPoints: [local("style/page.css")] });
  } finally {
    await stop();
  }
  for (const name of COPIED) {
    await Deno.copyFile(new URL(name, PAGE), new URL(name, fresh));
  }
  await Deno.remove(out, { recursive: true }).catch(() => {});
  await Deno.rename(fresh, out);
  await Deno.writeTextFile(stamp, id);
}

if (import.meta.main) {
  await bundlePage(new URL("../../build/", import.meta.url));
}
