import { createHash } from "node:crypto";
import type { Checkpoint } from "./checkpoint.ts";

/** Weights of up to so many bytes are read whole. */
const WHOLE_BYTES = 2 ** 31;
/** Bytes that are read at once. */
const BLOCK_BYTES = 1 << 20;
/** Of larger weights: bytes from the beginning of each block, and from each tensor's end. */
const SAMPLE_BYTES = 4096;

/** Which bytes `[from, to)` of a tensor in `[begin, end)` are looked at. */
function* ranges(begin: number, end: number, whole: boolean) {
  const bytes = whole ? BLOCK_BYTES : SAMPLE_BYTES;
  for (let from = begin; from < end; from += BLOCK_BYTES) {
    yield [from, Math.min(from + bytes, end)];
  }
  if (!whole) yield [Math.max(begin, end - SAMPLE_BYTES), end];
}

/**
 * A digest of a checkpoint's config and weights: of the config, of each tensor's name, type and
 * shape, and of its bytes. Of weights above {@link WHOLE_BYTES} samples stand for all bytes: to read
 * 60 GB takes longer than to compute a cache again, and a training step changes nearly every weight.
 */
export async function fingerprint(
  { config, files, tensors }: Checkpoint,
  { wholeBytes = WHOLE_BYTES } = {},
): Promise<string> {
  const hash = createHash("sha256").update(JSON.stringify(config));
  const opened = new Map<string, Deno.FsFile>();
  const buffer = new Uint8Array(BLOCK_BYTES);
  let total = 0;
  for (const { begin, end } of tensors.values()) total += end - begin;
  try {
    for (const { path } of files) opened.set(path, await Deno.open(path));
    for (const name of [...tensors.keys()].sort()) {
      const { dtype, shape, begin, end, path } = tensors.get(name)!;
      const file = opened.get(path)!;
      hash.update(`${name} ${dtype} [${shape}]\n`);
      for (const [from, to] of ranges(begin, end, total <= wholeBytes)) {
        await file.seek(from, Deno.SeekMode.Start);
        const wanted = buffer.subarray(0, to - from);
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
