/** The status line, and what screen readers are told. */
import { byId, h } from "./dom.ts";

/** A button in the status line. */
export interface StatusAction {
  label: string;
  act(): void;
}

/** Characters of an answer that are read out; the rest is in the log. */
const READ_OUT = 1500;

/** Says what is going on, one thing at a time. */
export class Status {
  readonly #line = byId("status", HTMLElement);
  readonly #alert = byId("alert", HTMLElement);
  readonly #said = byId("said", HTMLElement);
  #timer: ReturnType<typeof setTimeout> | undefined;

  #put(place: HTMLElement, words: string, action?: StatusAction) {
    clearTimeout(this.#timer);
    this.clear();
    place.append(h("span", {}, words));
    if (!action) return;
    place.append(
      h("button", {
        type: "button",
        class: "link",
        onclick: () => {
          this.clear();
          action.act();
        },
      }, action.label),
    );
  }

  /** Tells how something goes; with `seconds`, for so long. */
  tell(words: string, action?: StatusAction, seconds = 0) {
    this.#put(this.#line, words, action);
    if (seconds > 0) {
      this.#timer = setTimeout(() => this.clear(), seconds * 1e3);
    }
  }

  /** Tells what went wrong. */
  fail(words: string, action?: StatusAction) {
    this.#put(this.#alert, words, action);
  }

  clear() {
    this.#line.replaceChildren();
    this.#alert.replaceChildren();
  }

  /** Reads an answer out, once it is complete. */
  say(text: string) {
    this.#said.textContent = text.length > READ_OUT
      ? `${text.slice(0, READ_OUT)} …`
      : text;
  }
}
