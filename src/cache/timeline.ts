import { PAGE_TOKENS } from "../../ffi/mod.ts";
import type { PagePool } from "./pages.ts";

/**
 * The tokens of one sequence and the pages that hold them. What a {@link Cache} is to the user, a
 * timeline is to the engine; a request without a cache of its own has one for itself.
 */
export class Timeline {
  readonly pool: PagePool;
  #tokens: number[] = [];
  #pages: number[] = [];

  readonly #reserved: number;

  /** @param reserved tokens for which pages are held from the start */
  constructor(pool: PagePool, reserved: number = 0) {
    this.pool = pool;
    this.#reserved = reserved;
    this.reserve(reserved);
  }

  /** Tokens whose latents are held. */
  get length(): number {
    return this.#tokens.length;
  }

  /** Their ids. */
  get tokens(): readonly number[] {
    return this.#tokens;
  }

  /** Page `i` holds tokens `[64 i, 64 i + 64)`. */
  get pages(): readonly number[] {
    return this.#pages;
  }

  /** Pages that {@link reserve} would take from the pool for a total of `length` tokens. */
  pagesNeeded(length: number): number {
    const fresh = Math.ceil(length / PAGE_TOKENS) - this.#pages.length;
    return Math.max(fresh, 0) + (this.#mustCopy(length) ? 1 : 0);
  }

  /** Makes room for a total of `length` tokens, all beyond the present ones writable. */
  reserve(length: number) {
    if (this.#mustCopy(length)) {
      const at = this.#tail();
      const [copy] = this.pool.take(1);
      this.pool.copy(this.#pages[at], copy, this.length % PAGE_TOKENS);
      this.pool.release([this.#pages[at]]);
      this.#pages[at] = copy;
    }
    const fresh = Math.ceil(length / PAGE_TOKENS) - this.#pages.length;
    if (fresh > 0) this.#pages.push(...this.pool.take(fresh));
  }

  /** Says that these tokens have been computed into the pages. */
  append(tokens: Iterable<number>) {
    for (const token of tokens) this.#tokens.push(token);
  }

  /** Forgets tokens from `length` on; pages beyond go back, except reserved ones. */
  truncate(length: number) {
    this.#tokens.length = length;
    const used = Math.ceil(length / PAGE_TOKENS);
    const reserved = Math.ceil(this.#reserved / PAGE_TOKENS);
    // A page that a fork reads cannot be written, so there is no use in holding it.
    let kept = used;
    while (
      kept < Math.min(reserved, this.#pages.length) &&
      !this.pool.isShared(this.#pages[kept])
    ) kept++;
    if (kept < this.#pages.length) {
      this.pool.release(this.#pages.splice(kept));
    }
  }

  /** Another timeline of the same tokens; pages are shared until one side writes. */
  fork(): Timeline {
    const copy = new Timeline(this.pool);
    const kept = Math.ceil(this.length / PAGE_TOKENS);
    copy.#tokens = this.#tokens.slice();
    copy.#pages = this.#pages.slice(0, kept);
    this.pool.share(copy.#pages);
    return copy;
  }

  /** Takes pages that already hold these tokens; the timeline must be empty. */
  adopt(tokens: readonly number[], pages: readonly number[]) {
    this.pool.release(this.#pages);
    this.#pages = pages.slice();
    this.#tokens = tokens.slice(0, pages.length * PAGE_TOKENS);
  }

  /** Tokens at the start that this timeline and `tokens` have in common. */
  commonPrefix(tokens: ArrayLike<number>): number {
    const end = Math.min(this.length, tokens.length);
    let i = 0;
    while (i < end && this.#tokens[i] === tokens[i]) i++;
    return i;
  }

  /** Gives all pages back. */
  dispose() {
    this.pool.release(this.#pages);
    this.#pages = [];
    this.#tokens = [];
  }

  /** The page that the next token falls into. */
  #tail(): number {
    return Math.floor(this.length / PAGE_TOKENS);
  }

  /** Whether the next token would be written into a page that another timeline reads. */
  #mustCopy(length: number): boolean {
    const at = this.#tail();
    return length > this.length && at < this.#pages.length &&
      this.pool.isShared(this.#pages[at]);
  }
}
