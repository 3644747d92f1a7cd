import { PAGE_TOKENS } from "../../ffi/mod.ts";
import type { PagePool } from "./pages.ts";

/** A full page of tokens that follow those of its ancestors. */
interface Node {
  readonly page: number;
  readonly key: string;
  readonly parent: Node | undefined;
  readonly children: Map<string, Node>;
  /** A count of lookups, not a time: the least is evicted first. */
  used: number;
}

/**
 * Keeps full pages of finished requests for prompts that begin alike: a tree of pages, each found
 * by its 64 tokens under the pages before it. Pages that nobody else holds are given up, the least
 * recently used first, when the pool needs them.
 */
export class PrefixCache {
  readonly #pool: PagePool;
  readonly #maxPages: number;
  readonly #roots = new Map<string, Node>();
  readonly #nodes = new Set<Node>();
  #clock = 0;

  /** @param maxPages pages to keep at most */
  constructor(pool: PagePool, maxPages: number) {
    this.#pool = pool;
    this.#maxPages = maxPages;
    pool.reclaim = (count) => this.#evict(count, (page) => pool.isIdle(page));
  }

  /**
   * The pages of the longest kept prefix of `tokens`, leaving at least one token to compute. The
   * caller holds them, too, from now on.
   */
  find(tokens: readonly number[]): number[] {
    const pages: number[] = [];
    let level = this.#roots;
    for (let at = 0; at + PAGE_TOKENS < tokens.length; at += PAGE_TOKENS) {
      const node = level.get(keyOf(tokens, at));
      if (!node) break;
      node.used = ++this.#clock;
      pages.push(node.page);
      level = node.children;
    }
    this.#pool.share(pages);
    return pages;
  }

  /** Keeps the full pages of a timeline. */
  keep(tokens: readonly number[], pages: readonly number[]) {
    let parent: Node | undefined;
    let level = this.#roots;
    const full = Math.floor(tokens.length / PAGE_TOKENS);
    for (let i = 0; i < full; i++) {
      const key = keyOf(tokens, i * PAGE_TOKENS);
      let node = level.get(key);
      if (!node) {
        node = { page: pages[i], key, parent, children: new Map(), used: 0 };
        this.#pool.keep(pages[i]);
        level.set(key, node);
        this.#nodes.add(node);
      }
      node.used = ++this.#clock;
      parent = node;
      level = node.children;
    }
    this.#evict(this.#nodes.size - this.#maxPages, () => true);
  }

  /** Gives up all pages. */
  clear() {
    const pages = [...this.#nodes].map((node) => node.page);
    this.#nodes.clear();
    this.#roots.clear();
    this.#pool.unkeep(pages);
  }

  /** Gives up pages, the least recently used first, until `count` of them counted. */
  #evict(count: number, counts: (page: number) => boolean) {
    if (count <= 0) return;
    // Leaves only: what follows an evicted page could never be found again.
    const leaves = [...this.#nodes].filter((node) => node.children.size === 0);
    leaves.sort((a, b) => b.used - a.used);
    while (count > 0) {
      const leaf = leaves.pop();
      if (!leaf) return;
      if (counts(leaf.page)) count--;
      this.#nodes.delete(leaf);
      const siblings = leaf.parent?.children ?? this.#roots;
      siblings.delete(leaf.key);
      this.#pool.unkeep([leaf.page]);
      if (leaf.parent && leaf.parent.children.size === 0) {
        const { parent } = leaf;
        const at = leaves.findIndex((other) => other.used <= parent.used);
        leaves.splice(at < 0 ? leaves.length : at, 0, parent);
      }
    }
  }
}

function keyOf(tokens: readonly number[], at: number): string {
  return tokens.slice(at, at + PAGE_TOKENS).join();
}
