/**
 * Server-sent events, written together while many streams run.
 *
 * @module
 */

const encoder = new TextEncoder();
/** Milliseconds that a token waits at most for the ones after it. */
const MAX_DELAY = 100;
/** Milliseconds for each open stream: writes a second stay below 1000 / this. */
const DELAY = 0.5;
/** Below so many milliseconds nothing waits. */
const MIN_DELAY = 2;

/** Decides when the streams of a server write. */
export class Flusher {
  readonly #dirty = new Set<EventStream>();
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** Streams that are open. */
  open = 0;

  /** A stream has something to write. */
  mark(stream: EventStream) {
    const delay = Math.min(MAX_DELAY, this.open * DELAY);
    if (delay < MIN_DELAY) return stream.flush();
    this.#dirty.add(stream);
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      const streams = [...this.#dirty];
      this.#dirty.clear();
      for (const each of streams) each.flush();
    }, delay);
  }

  /** A stream has nothing more to write. */
  forget(stream: EventStream) {
    this.#dirty.delete(stream);
  }
}

/** What an {@link EventStream} is made of. */
export interface EventStreamParts {
  flusher: Flusher;
  /** Gives what there is to write, as `data: …` lines, and forgets it. */
  drain: () => string;
  /** The client has left. */
  cancel: () => void;
}

/**
 * The body of a streamed answer. A client that reads slowly gets fewer, larger pieces: what it has
 * not yet taken is drained later.
 */
export class EventStream {
  /** For the response. */
  readonly body: ReadableStream<Uint8Array>;
  readonly #parts: EventStreamParts;
  #controller!: ReadableStreamDefaultController<Uint8Array>;
  #ended = false;
  #first = true;
  /** Whether the client's slowness kept something from being written. */
  #blocked = false;

  constructor(parts: EventStreamParts) {
    this.#parts = parts;
    parts.flusher.open++;
    this.body = new ReadableStream<Uint8Array>({
      start: (controller) => {
        this.#controller = controller;
      },
      pull: () => {
        if (this.#blocked) this.flush();
      },
      cancel: () => {
        this.#end();
        parts.cancel();
      },
    });
  }

  /** There is something to write. The first time it is written at once. */
  changed() {
    if (this.#ended) return;
    if (!this.#first) return this.#parts.flusher.mark(this);
    this.#first = false;
    this.flush();
  }

  /** Writes what there is, unless the client has not taken what was written before. */
  flush() {
    if (this.#ended) return;
    this.#blocked = (this.#controller.desiredSize ?? 0) <= 0;
    if (this.#blocked) return;
    const text = this.#parts.drain();
    if (text !== "") this.#controller.enqueue(encoder.encode(text));
  }

  /** Writes what there is and `last`, and ends the stream. */
  close(last: string) {
    if (this.#ended) return;
    const text = this.#parts.drain() + last;
    if (text !== "") this.#controller.enqueue(encoder.encode(text));
    this.#end();
    this.#controller.close();
  }

  #end() {
    if (this.#ended) return;
    this.#ended = true;
    this.#parts.flusher.open--;
    this.#parts.flusher.forget(this);
  }
}
