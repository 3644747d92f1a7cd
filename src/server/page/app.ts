/** The page: conversations, and the answers that are being written. */
import { ChatError, modelName, requestBody, streamAnswer } from "./chat_api.ts";
import { Composer } from "./composer.ts";
import { byId } from "./dom.ts";
import type { Drawers } from "./drawers.ts";
import { LogView } from "./log_view.ts";
import { apiKey, keepSettings, lastSettings } from "./settings.ts";
import { SettingsForm } from "./settings_form.ts";
import { Sidebar } from "./sidebar.ts";
import { Status } from "./status.ts";
import type { Store } from "./store.ts";
import {
  addTurn,
  branches,
  newConversation,
  path,
  pathTo,
  showBeside,
} from "./tree.ts";
import type { Conversation, Turn } from "./types.ts";

/** Milliseconds from one save to the next while an answer is written. */
const SAVE_EVERY = 1000;
/** Seconds in which a conversation that was deleted can be had back. */
const UNDO = 10;

/** Holds everything together. */
export class App {
  readonly #store: Store;
  readonly #drawers: Drawers;
  readonly #status = new Status();
  readonly #form: SettingsForm;
  readonly #log: LogView;
  readonly #sidebar: Sidebar;
  readonly #composer: Composer;
  readonly #title = byId("title", HTMLElement);
  /** Answers being written, by the id of their conversation. */
  readonly #running = new Map<string, AbortController>();
  #conversations: Conversation[] = [];
  #current: Conversation = newConversation(lastSettings());
  #unsaved: ReturnType<typeof setTimeout> | undefined;

  constructor(store: Store, drawers: Drawers) {
    this.#store = store;
    this.#drawers = drawers;
    this.#sidebar = new Sidebar({
      open: (id) => this.open(id),
      remove: (id) => this.remove(id),
    });
    this.#log = new LogView({
      edit: (turn, text) => this.#ask(this.#current, turn.parent, text),
      regenerate: (turn) => void this.#answer(this.#current, turn.parent),
      beside: (turn, step) => this.#beside(turn, step),
    });
    this.#form = new SettingsForm(() => this.#settingsChanged());
    this.#composer = new Composer({
      send: (text) => this.send(text),
      stop: () => this.stop(),
      modes: () => this.#drawers.toggle("settings", true),
    });
  }

  /** Reads what is kept, and shows the conversation that the address names. */
  async start() {
    void this.connect();
    try {
      this.#conversations = await this.#store.all();
    } catch {
      this.#status.fail(
        "This browser keeps nothing for this page: conversations end with it",
      );
    }
    for (const { turns } of this.#conversations) {
      for (const turn of turns) {
        // The page was left while it was written.
        if (turn.state === "writing") turn.state = "stopped";
      }
    }
    this.open(location.hash.slice(1), false);
  }

  /** Asks for the model's name, which shows that the server can be reached. */
  async connect() {
    try {
      const name = await modelName(apiKey.get());
      byId("model", HTMLElement).textContent = name;
      byId("empty-model", HTMLElement).textContent = name;
      this.#status.clear();
    } catch (error) {
      this.#failed(error);
    }
  }

  /** Shows a conversation; a new one when there is none of this id. */
  open(id: string, focus = true) {
    this.#current = this.#conversations.find((each) => each.id === id) ??
      newConversation(lastSettings());
    const kept = this.#conversations.includes(this.#current);
    history.replaceState(null, "", kept ? `#${id}` : "#");
    this.#form.show(this.#current.settings);
    this.#log.toEnd();
    this.#show();
    this.#drawers.closeAbove();
    if (!focus) return;
    this.#status.clear();
    this.#composer.focus();
  }

  #show() {
    const { title, id, settings } = this.#current;
    this.#title.textContent = title || "New conversation";
    document.title = title === "" ? "moela" : `${title} – moela`;
    this.#sidebar.show(this.#conversations, this.#current);
    const focused = this.#log.hasFocus();
    this.#log.show(this.#current);
    // What had the focus is gone.
    if (focused) this.#composer.focus();
    this.#composer.show(this.#running.has(id), settings);
  }

  #settingsChanged() {
    keepSettings(this.#current.settings);
    if (this.#conversations.includes(this.#current)) this.#saveSoon();
    this.#composer.show(
      this.#running.has(this.#current.id),
      this.#current.settings,
    );
  }

  /** Saves the conversation a little later, and with it what is typed until then. */
  #saveSoon() {
    const conversation = this.#current;
    clearTimeout(this.#unsaved);
    this.#unsaved = setTimeout(() => this.#save(conversation), 300);
  }

  async #save(conversation: Conversation) {
    try {
      await this.#store.save(conversation);
    } catch {
      // Said once, at the start.
    }
  }

  /** Forgets a conversation, which can be had back for a while. */
  remove(id: string) {
    const removed = this.#conversations.find((each) => each.id === id);
    if (!removed) return;
    this.#running.get(id)?.abort();
    this.#conversations = this.#conversations.filter((each) => each.id !== id);
    void this.#store.remove(id);
    if (this.#current.id === id) this.open("");
    else this.#show();
    const undo = () => {
      this.#conversations = [removed, ...this.#conversations]
        .sort((a, b) => b.updated - a.updated);
      void this.#save(removed);
      this.open(id);
    };
    const label = "Undo";
    this.#status.tell(`Deleted “${removed.title}”`, { label, act: undo }, UNDO);
  }

  /** Asks what was typed. Returns whether it was sent. */
  send(text: string): boolean {
    if (this.#running.has(this.#current.id)) {
      this.#status.tell("The answer is still being written: Esc stops it");
      return false;
    }
    return this.#ask(this.#current, path(this.#current).at(-1)?.id ?? "", text);
  }

  #ask(conversation: Conversation, parent: string, text: string): boolean {
    if (!this.#ready()) return false;
    if (!this.#conversations.includes(conversation)) {
      this.#conversations.unshift(conversation);
      history.replaceState(null, "", `#${conversation.id}`);
    }
    const turn = addTurn(conversation, { parent, role: "user", text });
    this.#conversations.sort((a, b) => b.updated - a.updated);
    void this.#answer(conversation, turn.id);
    return true;
  }

  /** Whether the settings can be sent; says what is wrong with them. */
  #ready(): boolean {
    const problem = this.#form.problem();
    if (problem === undefined) return true;
    const act = () => this.#drawers.toggle("settings", true);
    this.#status.fail(problem, { label: "Open settings", act });
    return false;
  }

  /** Ends the answer that is written in the conversation that is shown. */
  stop(): boolean {
    const running = this.#running.get(this.#current.id);
    running?.abort();
    return running !== undefined;
  }

  async #answer(conversation: Conversation, parent: string) {
    if (!this.#ready()) return;
    this.#running.get(conversation.id)?.abort();
    const { settings } = conversation;
    const seed = settings.sampling.seed ??
      crypto.getRandomValues(new Uint32Array(1))[0];
    const asked = pathTo(conversation, parent).filter(({ text }) =>
      text !== ""
    );
    const body = requestBody(asked, settings, seed);
    const turn = addTurn(conversation, {
      parent,
      role: "assistant",
      text: "",
      state: "writing",
      format: settings.format,
      seed,
      tokens: settings.probabilities ? [] : undefined,
    });
    const running = new AbortController();
    this.#running.set(conversation.id, running);
    this.#status.clear();
    this.#log.toEnd();
    this.#show();
    void this.#save(conversation);
    let saved = performance.now();
    try {
      const { signal } = running;
      const sent = { key: apiKey.get(), signal };
      const ending = await streamAnswer(body, sent, ({ text, tokens }) => {
        turn.text += text;
        turn.tokens?.push(...tokens);
        this.#log.changed(turn);
        if (performance.now() - saved < SAVE_EVERY) return;
        saved = performance.now();
        void this.#save(conversation);
      });
      turn.state = ending.reason === "length" ? "length" : "done";
      turn.stats = ending.stats;
      if (conversation === this.#current) this.#status.say(turn.text);
    } catch (error) {
      turn.state = running.signal.aborted ? "stopped" : "failed";
      if (turn.state === "failed") {
        turn.error = error instanceof ChatError
          ? error.message
          : `The page failed: ${error}`;
        this.#failed(error);
      } else if (conversation === this.#current) this.#status.say("Stopped");
    }
    if (this.#running.get(conversation.id) === running) {
      this.#running.delete(conversation.id);
    }
    // One that was deleted meanwhile stays so.
    if (!this.#conversations.includes(conversation)) return;
    void this.#save(conversation);
    if (conversation !== this.#current) return;
    this.#log.changed(turn);
    this.#composer.show(this.#running.has(conversation.id), settings);
  }

  #failed(error: unknown) {
    const words = error instanceof Error ? error.message : `${error}`;
    if (error instanceof ChatError && error.needsKey) {
      const act = () => {
        this.#drawers.toggle("settings", true);
        byId("api-key", HTMLInputElement).focus();
      };
      return this.#status.fail(words, { label: "Enter a key", act });
    }
    this.#status.fail(words);
  }

  #beside(turn: Turn, step: 1 | -1) {
    showBeside(this.#current, turn, step);
    this.#show();
    void this.#save(this.#current);
    const list = branches(this.#current, turn.parent);
    const shown = list[list.indexOf(turn) + step] ?? turn;
    const label = step > 0 ? "Branch after" : "Branch before";
    this.#log.focusTool(shown.id, label);
  }
}
