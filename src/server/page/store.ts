/** Conversations in the browser's own database. */
import type { Conversation } from "./types.ts";

const NAME = "moela";
const STORE = "conversations";

function settled<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

// Asynchronous, as a browser may throw where a page may have no database.
// deno-lint-ignore require-await
async function open(): Promise<IDBDatabase> {
  const request = indexedDB.open(NAME, 1);
  request.onupgradeneeded = () =>
    request.result.createObjectStore(STORE, { keyPath: "id" });
  return settled(request);
}

/** Keeps conversations; those of a browser without a database last as long as the page. */
export class Store {
  readonly #opened: Promise<IDBDatabase>;

  constructor() {
    this.#opened = open();
    // Whoever asks is told.
    this.#opened.catch(() => {});
  }

  async #in<T>(
    mode: IDBTransactionMode,
    act: (store: IDBObjectStore) => IDBRequest<T>,
  ): Promise<T> {
    const database = await this.#opened;
    return await settled(
      act(database.transaction(STORE, mode).objectStore(STORE)),
    );
  }

  /** All of them, the last used first. */
  async all(): Promise<Conversation[]> {
    const list: Conversation[] = await this.#in(
      "readonly",
      (store) => store.getAll(),
    );
    return list.sort((a, b) => b.updated - a.updated);
  }

  /** Keeps one as it is now. */
  async save(conversation: Conversation): Promise<void> {
    await this.#in("readwrite", (store) => store.put(conversation));
  }

  /** Forgets one. */
  async remove(id: string): Promise<void> {
    await this.#in("readwrite", (store) => store.delete(id));
  }
}
