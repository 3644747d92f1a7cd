/**
 * How many generations run at once, and how many wait.
 *
 * @module
 */

interface Waiting {
  places: number;
  enter: () => void;
}

/** A number of places, given away in order of arrival. */
export class Gate {
  readonly #places: number;
  readonly #queue: Waiting[] = [];
  #taken = 0;

  constructor(places: number) {
    this.#places = places;
  }

  /** Requests that wait. */
  get waiting(): number {
    return this.#queue.length;
  }

  /** Places in use. */
  get taken(): number {
    return this.#taken;
  }

  /**
   * Takes places, waiting until they are free.
   *
   * @param places at most as many as there are
   * @returns gives them back; may be called again
   */
  async enter(places: number, signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted();
    if (this.#queue.length > 0 || this.#taken + places > this.#places) {
      await new Promise<void>((resolve, reject) => {
        const leave = () => {
          const at = this.#queue.indexOf(waiting);
          if (at >= 0) this.#queue.splice(at, 1);
          reject(signal.reason);
          // Smaller ones behind it may fit.
          this.#admit();
        };
        const enter = () => {
          signal.removeEventListener("abort", leave);
          resolve();
        };
        const waiting: Waiting = { places, enter };
        signal.addEventListener("abort", leave, { once: true });
        this.#queue.push(waiting);
      });
    } else this.#taken += places;
    let inside = true;
    return () => {
      if (!inside) return;
      inside = false;
      this.#taken -= places;
      this.#admit();
    };
  }

  #admit() {
    while (this.#queue.length > 0) {
      const [{ places, enter }] = this.#queue;
      if (this.#taken + places > this.#places) return;
      this.#queue.shift();
      this.#taken += places;
      enter();
    }
  }
}
