import type { Symbols } from "./library.ts";
import { ErrorBuffer } from "./status.ts";

/** A model's calls on the pages of its cache pools. */
export abstract class PageCalls {
  /** The library's symbols. */
  protected readonly symbols: Symbols;

  /** Calls go through these symbols. */
  constructor(symbols: Symbols) {
    this.symbols = symbols;
  }

  /** The library's handle of the model. */
  abstract get handle(): Deno.PointerObject;

  /** Bytes of one page of a pool. */
  pageBytes(pool: number): number {
    const err = new ErrorBuffer();
    return err.unwrap(
      Number(
        this.symbols.moela_pool_page_bytes(
          this.handle,
          pool,
          err.bytes,
          err.length,
        ),
      ),
      "Cannot tell the size of a page",
    );
  }

  /** Copies the first `tokens` tokens of a page to another. */
  copyPage(pool: number, from: number, to: number, tokens: number) {
    const err = new ErrorBuffer();
    err.check(
      this.symbols.moela_pool_copy(
        this.handle,
        pool,
        from,
        to,
        tokens,
        err.bytes,
        err.length,
      ),
      "Cannot copy a cache page",
    );
  }

  /** Gives the memory of pages back. */
  releasePages(pool: number, pages: Int32Array<ArrayBuffer>) {
    if (pages.length === 0) return;
    const err = new ErrorBuffer();
    err.check(
      this.symbols.moela_pool_release(
        this.handle,
        pool,
        pages,
        pages.length,
        err.bytes,
        err.length,
      ),
      "Cannot release cache pages",
    );
  }

  /** A whole page, in the layout of `moela_pool_desc`. */
  readPage(pool: number, page: number): Uint8Array<ArrayBuffer> {
    const out = new Uint8Array(this.pageBytes(pool));
    const err = new ErrorBuffer();
    const size = BigInt(out.length);
    err.check(
      this.symbols.moela_pool_read(
        this.handle,
        pool,
        page,
        out,
        size,
        err.bytes,
        err.length,
      ),
      "Cannot read a cache page",
    );
    return out;
  }

  /** Fills a whole page. */
  writePage(pool: number, page: number, data: Uint8Array<ArrayBuffer>) {
    const err = new ErrorBuffer();
    const size = BigInt(data.length);
    err.check(
      this.symbols.moela_pool_write(
        this.handle,
        pool,
        page,
        data,
        size,
        err.bytes,
        err.length,
      ),
      "Cannot write a cache page",
    );
  }
}
