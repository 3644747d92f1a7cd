/** The fixtures' checkpoints. Their tensors are kept compressed, so that the tree stays small. */
import { gunzipSync } from "node:zlib";

const PACKED = new URL("../fixtures/checkpoints/", import.meta.url);
const UNPACKED = new URL("../../build/fixtures/", import.meta.url);

/** All of them. */
export const CHECKPOINTS = [
  "tiny-lite",
  "tiny-v2",
  "tiny-norope-scaling",
  "tiny-v3",
  "real-heads",
] as const;

/** The folder of a fixture's checkpoint, which the first call unpacks. */
export function checkpointFolder(name: typeof CHECKPOINTS[number]): URL {
  const folder = new URL(`${name}/`, UNPACKED);
  if (exists(folder)) return folder;
  Deno.mkdirSync(UNPACKED, { recursive: true });
  // Renamed when complete: other processes may be at the same.
  const temporary = Deno.makeTempDirSync({ dir: UNPACKED.pathname });
  for (const { name: file } of Deno.readDirSync(new URL(name, PACKED))) {
    const bytes = Deno.readFileSync(new URL(`${name}/${file}`, PACKED));
    const packed = file.endsWith(".gz");
    Deno.writeFileSync(
      `${temporary}/${packed ? file.slice(0, -3) : file}`,
      packed ? gunzipSync(bytes) : bytes,
    );
  }
  try {
    Deno.renameSync(temporary, folder);
  } catch (error) {
    Deno.removeSync(temporary, { recursive: true });
    if (!exists(folder)) throw error;
  }
  return folder;
}

function exists(url: URL): boolean {
  try {
    return Deno.statSync(url).isDirectory;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}
