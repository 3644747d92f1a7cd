/**
 * The tokens of a vocabulary as a tree of their bytes, so that those with a
 * common beginning are tried together.
 *
 * @module
 */

/** Where the bytes of tokens come from. */
export interface TokenBytes {
  /** How many ids there are. */
  readonly size: number;
  /** The bytes of an id. */
  bytes(id: number): Uint8Array;
}

function compare(a: Uint8Array, b: Uint8Array): number {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i++) {
    if (a[i] !== b[i]) return a[i] - b[i];
  }
  return a.length - b.length;
}

/** The nodes of the tree, each before those under it, in flat arrays. */
export class TokenTrie {
  /** The byte that leads to each node. */
  readonly byte: Uint8Array;
  /** How many nodes lie between the root and each node. */
  readonly depth: Uint16Array;
  /** The first node that is not under each node. */
  readonly skip: Int32Array;
  /** The token that ends at each node, or -1. */
  readonly token: Int32Array;
  /** For each token the next one with the same bytes, or -1. */
  readonly alike: Int32Array;
  /** Bytes of the longest token. */
  readonly longest: number;

  /**
   * @param tokens The bytes of all ids.
   * @param isText Which ids stand for text; those without bytes never do.
   */
  constructor(tokens: TokenBytes, isText: (id: number) => boolean) {
    const sorted: { id: number; bytes: Uint8Array }[] = [];
    let total = 0;
    for (let id = 0; id < tokens.size; id++) {
      const bytes = tokens.bytes(id);
      if (bytes.length === 0 || !isText(id)) continue;
      sorted.push({ id, bytes });
      total += bytes.length;
    }
    sorted.sort((a, b) => compare(a.bytes, b.bytes));

    const byte = new Uint8Array(total);
    const depth = new Uint16Array(total);
    const skip = new Int32Array(total);
    const token = new Int32Array(total).fill(-1);
    this.alike = new Int32Array(tokens.size).fill(-1);
    const path: number[] = [];
    let size = 0;
    let longest = 0;
    let previous = new Uint8Array();
    const close = (length: number) => {
      while (path.length > length) skip[path.pop()!] = size;
    };
    for (const { id, bytes } of sorted) {
      let common = 0;
      while (common < previous.length && previous[common] === bytes[common]) {
        common++;
      }
      close(common);
      for (let i = common; i < bytes.length; i++) {
        byte[size] = bytes[i];
        depth[size] = i;
        path.push(size++);
      }
      const node = path[path.length - 1];
      this.alike[id] = token[node];
      token[node] = id;
      previous = bytes as Uint8Array<ArrayBuffer>;
      longest = Math.max(longest, bytes.length);
    }
    close(0);
    this.byte = byte.slice(0, size);
    this.depth = depth.slice(0, size);
    this.skip = skip.slice(0, size);
    this.token = token.slice(0, size);
    this.longest = longest;
  }
}
