/**
 * One request and its answer: how long it may take, who may end it, what is logged of it.
 *
 * @module
 */
import { ApiError } from "./error.ts";
import type { LogEntry } from "./log.ts";

/** A request on its way. */
export class Exchange {
  readonly id = `req_${crypto.randomUUID().replaceAll("-", "")}`;
  readonly request: Request;
  readonly path: string;
  /** As `performance.now()` tells it. */
  readonly started = performance.now();
  /** Added to the log's entry. */
  readonly notes: Partial<LogEntry> = {};
  /** Whether the answer is completed after the response was returned, and ends this then. */
  deferred = false;
  readonly #controller = new AbortController();
  readonly #onEnd: (exchange: Exchange, status: number) => void;
  readonly #left = () => this.leave();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #ended = false;

  /** @param onEnd called once, when the answer is complete */
  constructor(
    request: Request,
    path: string,
    onEnd: (exchange: Exchange, status: number) => void,
  ) {
    this.request = request;
    this.path = path;
    this.#onEnd = onEnd;
  }

  /** Aborted when nobody wants the answer any more. Its reason is an ApiError. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Ends the work on it. */
  abort(reason: ApiError) {
    this.#controller.abort(reason);
  }

  /** The client has left. */
  leave() {
    this.notes.aborted = true;
    this.abort(
      new ApiError(499, "The client left", { code: "client_left" }),
    );
  }

  /** Notes an error for the log. */
  note({ status, code, param, cause }: ApiError) {
    this.notes.code = code ?? undefined;
    this.notes.param = param ?? undefined;
    if (status >= 500 && cause instanceof Error) {
      this.notes.error = cause.stack ?? cause.message;
    }
  }

  /** From now on it may last so many milliseconds, and ends when the client leaves. */
  watch(timeoutMs: number) {
    if (this.request.signal.aborted) this.leave();
    this.request.signal.addEventListener("abort", this.#left, { once: true });
    this.#timer = setTimeout(() =>
      this.abort(
        new ApiError(504, `The request was not done after ${timeoutMs} ms`, {
          code: "request_timeout",
        }),
      ), timeoutMs);
  }

  /** The answer is complete. May be called again. */
  end(status: number) {
    if (this.#ended) return;
    this.#ended = true;
    clearTimeout(this.#timer);
    this.request.signal.removeEventListener("abort", this.#left);
    this.#onEnd(this, status);
  }
}
