/** The conversation: its turns, and where it is scrolled to. */
import { byId } from "./dom.ts";
import { MessageView, type TurnActions } from "./message_view.ts";
import { branches, path } from "./tree.ts";
import type { Conversation, Turn } from "./types.ts";

/** As near to the end, in CSS pixels, it follows what is written. */
const NEAR = 60;

/** Of the time that showing an answer takes, so many parts more are left to everything else. */
const REST = 3;
/** Milliseconds that may pass between two looks at most. */
const LONGEST_REST = 1000;

/** Shows the branch of a conversation that was chosen. */
export class LogView {
  readonly #scroll = byId("scroll", HTMLElement);
  readonly #log = byId("log", HTMLElement);
  readonly #empty = byId("empty", HTMLElement);
  readonly #latest = byId("latest", HTMLButtonElement);
  readonly #actions: TurnActions;
  #views = new Map<string, MessageView>();
  #follow = true;
  #changed = new Set<Turn>();
  #scheduled = false;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** Milliseconds until more is shown. */
  #rest = 0;

  constructor(actions: TurnActions) {
    this.#actions = actions;
    this.#scroll.addEventListener("scroll", () => this.#watch(), {
      passive: true,
    });
    this.#latest.addEventListener("click", () => this.toEnd());
  }

  /** Shows a conversation, from its end. */
  show(conversation: Conversation) {
    const { probabilities } = conversation.settings;
    this.#views = new Map();
    for (const turn of path(conversation)) {
      const beside = branches(conversation, turn.parent);
      const place = { index: beside.indexOf(turn), count: beside.length };
      this.#views.set(
        turn.id,
        new MessageView(turn, place, probabilities, this.#actions),
      );
    }
    this.#log.replaceChildren(
      ...[...this.#views.values()].map(({ element }) => element),
    );
    this.#empty.hidden = this.#views.size > 0;
    if (this.#follow) this.toEnd();
    else this.#watch();
  }

  hasFocus(): boolean {
    return this.#log.contains(document.activeElement);
  }

  /** A turn has more text: it is shown with a frame soon, its end at once. */
  changed(turn: Turn) {
    this.#changed.add(turn);
    if (turn.state !== "writing") {
      clearTimeout(this.#timer);
      return this.#update();
    }
    if (this.#scheduled) return;
    this.#scheduled = true;
    this.#timer = setTimeout(
      () => requestAnimationFrame(() => this.#update()),
      this.#rest,
    );
  }

  #update() {
    if (this.#changed.size === 0) return;
    const started = performance.now();
    this.#scheduled = false;
    for (const each of this.#changed) this.#views.get(each.id)?.update();
    this.#changed.clear();
    if (this.#follow) this.toEnd();
    else this.#watch();
    // A long paragraph on a slow device: the page must answer between two looks at it.
    const took = performance.now() - started;
    this.#rest = took < 4 ? 0 : Math.min(REST * took, LONGEST_REST);
  }

  /** Scrolls to the end and stays there. */
  toEnd() {
    this.#follow = true;
    this.#scroll.scrollTop = this.#scroll.scrollHeight;
    this.#latest.hidden = true;
  }

  #watch() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroll;
    this.#follow = scrollHeight - scrollTop - clientHeight < NEAR;
    this.#latest.hidden = this.#follow;
  }

  /** Moves the focus to a turn's tool, as after a switch between branches. */
  focusTool(turnId: string, label: string) {
    const foot = this.#views.get(turnId)?.element.querySelector(".foot");
    const tool = foot?.querySelector<HTMLButtonElement>(
      `[aria-label="${label}"]:not(:disabled)`,
    ) ?? foot?.querySelector<HTMLButtonElement>(".switch :not(:disabled)");
    tool?.focus();
  }
}
