// A longer state of a llama.cpp sequence made from a shorter one, whose tokens repeat in it.
//
// The file, little-endian: magic, version, tokens as a count and ids; then one stream's count of cells,
// for each cell its position and the sequences it belongs to; whether values are transposed; the number of
// layers; for keys and then values of each layer a type, the bytes of a cell as u64, and all cells.
import { closeSync, openSync, readFileSync, writeSync } from "node:fs";

const VERSION = 3;

/** Writes to `to` the state in `from` with `count` tokens. */
export function lengthen(from, to, count) {
  const bytes = readFileSync(from);
  let at = 0;
  const next = (want) => {
    const value = bytes.readUInt32LE(at);
    if (want !== undefined && value !== want) {
      throw new Error(`${from}: ${value} at byte ${at}, and must be ${want}`);
    }
    at += 4;
    return value;
  };
  const file = openSync(to, "w");
  const words = (numbers) =>
    writeSync(file, Buffer.from(Uint32Array.from(numbers).buffer));
  const magic = next();
  next(VERSION);
  const tokens = next();
  const ids = Array.from({ length: tokens }, () => next());
  words([magic, VERSION, count]);
  words(Array.from({ length: count }, (_, i) => ids[i % tokens]));
  next(1);
  next(tokens);
  words([1, count]);
  for (let i = 0; i < tokens; i++) {
    next(i);
    next(1);
    next(0);
  }
  words(Array.from({ length: count }, (_, i) => [i, 1, 0]).flat());
  next(0);
  words([0, next()]);
  while (at < bytes.length) {
    const type = next(), size = next();
    next(0);
    words([type, size, 0]);
    const cells = bytes.subarray(at, at += tokens * size);
    for (let left = count; left > 0; left -= tokens) {
      writeSync(file, cells, 0, Math.min(left, tokens) * size);
    }
  }
  closeSync(file);
}
