/**
 * The files of the chat page.
 *
 * @module
 */
import { toPath } from "../cache/path.ts";

const TYPES: Readonly<Record<string, string>> = {
  html: "text/html; charset=utf-8",
  js: "text/javascript; charset=utf-8",
  css: "text/css; charset=utf-8",
  json: "application/json",
  svg: "image/svg+xml",
  png: "image/png",
  ico: "image/x-icon",
  woff2: "font/woff2",
};

const HEADERS = {
  "content-security-policy": [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' data:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ].join("; "),
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cache-control": "no-cache",
};

interface PageFile {
  bytes: Uint8Array<ArrayBuffer>;
  type: string;
}

/** A folder of files, read when the first is asked for. */
export class Page {
  readonly #folder: string | undefined;
  #files: Promise<Map<string, PageFile>> | undefined;

  /** @param folder with an index.html; none serves nothing */
  constructor(folder: string | URL | undefined) {
    this.#folder = folder === undefined
      ? undefined
      : toPath(folder, "serve the page");
  }

  /** The file of a path, `/` being index.html; undefined when there is none. */
  async get(path: string): Promise<Response | undefined> {
    const files = await (this.#files ??= this.#read());
    const file = files.get(path === "/" ? "index.html" : path.slice(1));
    return file && new Response(file.bytes, {
      headers: { ...HEADERS, "content-type": file.type },
    });
  }

  /** Only what lies in the folder itself: a path never becomes a file's name. */
  async #read(): Promise<Map<string, PageFile>> {
    const files = new Map<string, PageFile>();
    if (this.#folder === undefined) return files;
    try {
      for await (const { name, isFile } of Deno.readDir(this.#folder)) {
        const type = TYPES[name.split(".").at(-1) ?? ""];
        if (!isFile || type === undefined) continue;
        const bytes = await Deno.readFile(`${this.#folder}/${name}`);
        files.set(name, { bytes, type });
      }
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
    return files;
  }
}
