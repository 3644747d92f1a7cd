/** One turn as it is shown. */
import { growing, h, icon, iconButton } from "./dom.ts";
import { codeBlock, copyButton, MarkdownView } from "./markdown.ts";
import { legend, TokensView } from "./tokens_view.ts";
import type { Turn } from "./types.ts";

/** What can be done with a turn. */
export interface TurnActions {
  /** Asks again with another text. */
  edit(turn: Turn, text: string): void;
  regenerate(turn: Turn): void;
  beside(turn: Turn, step: 1 | -1): void;
}

/** Where a turn stands among those that were written in its place. */
export interface Place {
  index: number;
  count: number;
}

const NOTES: Partial<Record<NonNullable<Turn["state"]>, string>> = {
  length: "Cut: the most tokens allowed were written",
  stopped: "Stopped",
};

function statsText({ stats, seed }: Turn): string {
  if (!stats) return "";
  const { tokens, cachedTokens, promptTokens, seconds } = stats;
  if (tokens === 0) return "";
  const parts = [`${tokens} ${tokens === 1 ? "token" : "tokens"}`];
  // What came at once has no speed.
  if (seconds > 0.1 && tokens > 1) {
    parts.push(`${Math.round((tokens - 1) / seconds)} a second`);
  }
  if (cachedTokens > 0) {
    parts.push(`${cachedTokens} of ${promptTokens} read from cache`);
  }
  if (seed !== undefined) parts.push(`seed ${seed}`);
  return parts.join(" · ");
}

/** JSON set out over lines; while it is written, or is none, as it is. */
function pretty(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** A turn's element, which follows the turn while it is written. */
export class MessageView {
  readonly element: HTMLElement;
  readonly turn: Turn;
  readonly #actions: TurnActions;
  readonly #body = h("div", { class: "body" });
  readonly #foot = h("div", { class: "foot" });
  readonly #place: Place;
  #probabilities: boolean;
  #markdown: MarkdownView | undefined;
  #tokens: TokensView | undefined;

  /** @param probabilities whether tokens are shown where they are known */
  constructor(
    turn: Turn,
    place: Place,
    probabilities: boolean,
    actions: TurnActions,
  ) {
    this.turn = turn;
    this.#place = place;
    this.#probabilities = probabilities;
    this.#actions = actions;
    const who = turn.role === "user" ? "You" : "Answer";
    this.element = h(
      "article",
      { class: `message ${turn.role}`, "aria-label": who },
      this.#body,
      this.#foot,
    );
    this.update();
  }

  /** Shows the turn as it is now. */
  update() {
    const { turn } = this;
    this.element.setAttribute("aria-busy", `${turn.state === "writing"}`);
    if (turn.role === "user") {
      this.#body.replaceChildren(h("p", { class: "plain" }, turn.text));
    } else this.#showAnswer();
    this.#showFoot();
  }

  #showAnswer() {
    const { turn } = this;
    const known = turn.tokens !== undefined && turn.tokens.length > 0;
    if (this.#probabilities && known) {
      if (!this.#tokens) {
        this.#tokens = new TokensView();
        this.#body.replaceChildren(legend(), this.#tokens.element);
      }
      return this.#tokens.show(turn.tokens!);
    }
    if (turn.text === "" && turn.state === "writing") {
      return this.#body.replaceChildren(
        h(
          "p",
          { class: "waiting" },
          h("span", { class: "sr" }, "Waiting for the answer"),
          h("i"),
          h("i"),
          h("i"),
        ),
      );
    }
    if (turn.format !== undefined && turn.format !== "text") {
      return this.#body.replaceChildren(codeBlock(pretty(turn.text), "json"));
    }
    if (!this.#markdown) {
      this.#markdown = new MarkdownView();
      this.#body.replaceChildren(this.#markdown.element);
    }
    this.#markdown.show(turn.text);
  }

  #showFoot() {
    const { turn } = this;
    const { index, count } = this.#place;
    if (turn.state === "writing") return this.#foot.replaceChildren();
    const parts: Node[] = [];
    if (turn.state === "failed") {
      parts.push(
        h(
          "p",
          { class: "failure" },
          icon("warning"),
          h("span", {}, turn.error ?? "The answer failed"),
        ),
      );
    }
    const note = turn.state && NOTES[turn.state];
    if (note) parts.push(h("p", { class: "note" }, note));
    const tools = h("div", { class: "tools" });
    if (count > 1) {
      const beside = (step: 1 | -1) => () => this.#actions.beside(turn, step);
      tools.append(
        h(
          "div",
          { class: "switch", role: "group", "aria-label": "Branches" },
          iconButton("left", "Branch before", beside(-1), {
            disabled: index === 0,
          }),
          h(
            "span",
            { "aria-label": `Branch ${index + 1} of ${count}`, role: "img" },
            `${index + 1}/${count}`,
          ),
          iconButton("right", "Branch after", beside(1), {
            disabled: index === count - 1,
          }),
        ),
      );
    }
    if (turn.text !== "") tools.append(copyButton(() => turn.text));
    if (turn.tokens !== undefined && turn.tokens.length > 0) {
      tools.append(
        iconButton("tokens", "Token probabilities", () => this.#toggle(), {
          "aria-pressed": `${this.#probabilities}`,
        }),
      );
    }
    if (turn.role === "user") {
      tools.append(iconButton("edit", "Edit", () => this.#edit()));
    } else {
      const again = turn.state === "failed" ? "Try again" : "Regenerate";
      tools.append(
        iconButton("again", again, () => this.#actions.regenerate(turn)),
        h("span", { class: "stats" }, statsText(turn)),
      );
    }
    this.#foot.replaceChildren(...parts, tools);
  }

  #toggle() {
    this.#probabilities = !this.#probabilities;
    this.#tokens = undefined;
    this.#markdown = undefined;
    this.update();
    this.#foot.querySelector<HTMLElement>("[aria-pressed]")?.focus();
  }

  #edit() {
    const { turn } = this;
    const close = () => {
      this.update();
      this.#foot.querySelector<HTMLElement>("[aria-label=Edit]")?.focus();
    };
    const send = () => {
      const text = area.value.trim();
      if (text !== "") this.#actions.edit(turn, text);
    };
    const area = h("textarea", {
      "aria-label": "Your message, edited",
      rows: Math.min(10, turn.text.split("\n").length + 1),
      onkeydown: (event) => {
        const { key, shiftKey, isComposing } = event as KeyboardEvent;
        if (isComposing) return;
        if (key === "Escape") {
          event.stopPropagation();
          close();
        } else if (key === "Enter" && !shiftKey) {
          event.preventDefault();
          send();
        }
      },
    });
    area.value = turn.text;
    growing(area);
    this.#body.replaceChildren(
      h(
        "form",
        {
          class: "edit",
          onsubmit: (event) => {
            event.preventDefault();
            send();
          },
        },
        area,
        h(
          "div",
          { class: "row" },
          h(
            "button",
            { type: "button", class: "quiet", onclick: close },
            "Cancel",
          ),
          h("button", { type: "submit", class: "main" }, "Send"),
        ),
      ),
    );
    this.#foot.replaceChildren();
    area.focus();
  }
}
