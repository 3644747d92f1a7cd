import { fileURLToPath } from "node:url";
import { wrongType } from "../arguments.ts";

/** A path or a file URL as a path. @throws TypeError for anything else */
export function toPath(path: string | URL, what: string): string {
  if (path instanceof URL) return fileURLToPath(path);
  if (typeof path === "string") return path;
  throw wrongType(what, "path", path, "a string or a URL");
}
