import { createHash } from "node:crypto";
import type { Checkpoint } from "./checkpoint.ts";

/** Bytes of each tensor that are looked at, in three places. */
const SAMPLE_BYTES = 4096;

/**
 * A digest of a checkpoint's config and weights: of the config, of each tensor's name, type and
 * shape, and of samples from its beginning, middle and end. Reading all of a 60 GB checkpoint would
 * take longer than computing the cache again; a training step changes nearly every weight.
 */
export async function fingerprint(
  { config, files, tensors }: Checkpoint,
): Promise<string> {
  const hash = createHash("sha256").update(JSON.stringify(config));
  const opened = new Map<string, Deno.FsFile>();
  const buffer = new Uint8Array(SAMPLE_BYTES);
  try {
    for (const { path } of files) opened.set(path, await Deno.open(path));
    for (const name of [...tensors.keys()].sort()) {
      const tensor = tensors.get(name)!;
      const { dtype, shape, begin, end, path } = tensor;
      hash.update(`${name} ${dtype} [${shape}]\n`);
      const last = Math.max(begin, end - SAMPLE_BYTES);
      const middle = begin + Math.floor((last - begin) / 2);
      for (const at of new Set([begin, middle, last])) {
        const file = opened.get(path)!;
        await file.seek(at, Deno.SeekMode.Start);
        const wanted = buffer.subarray(0, Math.min(SAMPLE_BYTES, end - at));
        for (let filled = 0; filled < wanted.length;) {
          const read = await file.read(wanted.subarray(filled));
          if (read === null) break;
          filled += read;
        }
        hash.update(wanted);
      }
    }
  } finally {
    for (const file of opened.values()) file.close();
  }
  return hash.digest("hex");
}
