import { fileURLToPath } from "node:url";

/** A path or a file URL as a path. @throws TypeError for anything else */
export function toPath(path: string | URL, what: string): string {
  if (path instanceof URL) return fileURLToPath(path);
  if (typeof path === "string") return path;
  const found = path === null ? "null" : typeof path;
  throw new TypeError(
    `Cannot ${what}: path is ${found}, and must be a string or a URL`,
  );
}
