/** Where a message is typed. */
import { byId, growing, icon } from "./dom.ts";
import type { Settings } from "./types.ts";

/** What it asks for. */
export interface ComposerActions {
  /** Returns whether the text was taken. */
  send(text: string): boolean;
  stop(): void;
  /** Shows where the modes are set. */
  modes(): void;
}

/** The text field and its button, which sends, or stops the answer that is written. */
export class Composer {
  readonly #area = growing(byId("message", HTMLTextAreaElement));
  readonly #button = byId("send", HTMLButtonElement);
  readonly #modes = byId("modes", HTMLButtonElement);
  readonly #actions: ComposerActions;
  #running = false;

  constructor(actions: ComposerActions) {
    this.#actions = actions;
    byId("composer", HTMLFormElement).addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#running) actions.stop();
      else this.#send();
    });
    this.#area.addEventListener("keydown", (event) => {
      const { key, shiftKey, isComposing } = event;
      if (key !== "Enter" || shiftKey || isComposing) return;
      event.preventDefault();
      this.#send();
    });
    this.#modes.addEventListener("click", () => actions.modes());
  }

  #send() {
    const text = this.#area.value.trim();
    if (text === "" || !this.#actions.send(text)) return;
    this.#area.value = "";
    this.#area.dispatchEvent(new Event("input"));
  }

  /** Takes the focus, where that brings up no keyboard of a phone. */
  focus() {
    if (matchMedia("(hover: hover)").matches) this.#area.focus();
  }

  /** Shows whether an answer is written, and what is special about the next one. */
  show(running: boolean, settings: Settings) {
    this.#running = running;
    const label = running ? "Stop" : "Send";
    this.#button.setAttribute("aria-label", label);
    this.#button.title = running ? "Stop (Esc)" : "Send (Enter)";
    this.#button.classList.toggle("stop", running);
    this.#button.replaceChildren(icon(running ? "stop" : "send"));
    const { system, format, sampling, probabilities } = settings;
    const modes = [
      ...system.trim() === "" ? [] : ["System prompt"],
      ...format === "text"
        ? []
        : [format === "json_schema" ? "JSON schema" : "JSON"],
      ...Object.keys(sampling).length > 0 ? ["Sampling"] : [],
      ...probabilities ? ["Probabilities"] : [],
    ];
    this.#modes.textContent = modes.join(" · ");
    this.#modes.hidden = modes.length === 0;
  }
}
