/** The tokens of an answer, coloured by how likely each was; each shows its alternatives. */
import { h } from "./dom.ts";
import type { Candidate, TokenInfo } from "./types.ts";

/** Upper ends of the classes `p0` … `p4` of style sheets, least likely first. */
const CLASSES = [0.05, 0.25, 0.5, 0.8];

function likelihood(probability: number): string {
  const found = CLASSES.findIndex((end) => probability < end);
  return `p${found < 0 ? CLASSES.length : found}`;
}

function percent(logprob: number): string {
  const value = 100 * Math.exp(logprob);
  if (value >= 99.95) return "100%";
  return value < 0.1 ? "< 0.1%" : `${value.toFixed(1)}%`;
}

/** A token's text with what cannot be seen made visible. */
function visible(text: string): string {
  if (text === "") return "(empty)";
  return text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
}

function row(each: Candidate, chosen: boolean): HTMLElement {
  const bar = h("span", { class: "bar" });
  bar.style.setProperty("--share", `${100 * Math.exp(each.logprob)}%`);
  return h(
    "tr",
    chosen ? { class: "chosen" } : {},
    h(
      "th",
      { scope: "row" },
      h("code", {}, visible(each.text)),
      ...chosen ? [h("span", { class: "sr" }, " (chosen)")] : [],
    ),
    h("td", {}, percent(each.logprob)),
    h("td", { class: "share", "aria-hidden": "true" }, bar),
  );
}

/** The token at a place, and what else could have stood there. */
function alternatives(token: TokenInfo): HTMLElement {
  const at = token.top.findIndex(({ text, logprob }) =>
    text === token.text && logprob === token.logprob
  );
  const rows = token.top.map((each, i) => row(each, i === at));
  if (at < 0) rows.push(row(token, true));
  return h(
    "table",
    {},
    h("caption", { class: "sr" }, `Alternatives to ${visible(token.text)}`),
    h(
      "thead",
      { class: "sr" },
      h(
        "tr",
        {},
        h("th", { scope: "col" }, "Token"),
        h("th", { scope: "col" }, "Probability"),
        h("td"),
      ),
    ),
    h("tbody", {}, ...rows),
  );
}

/**
 * Tokens as one stop of the tab order: arrow keys go from one to the next, Enter or a click opens
 * its alternatives, Escape closes them.
 */
export class TokensView {
  readonly element: HTMLElement;
  readonly #list: HTMLElement;
  readonly #card: HTMLElement;
  readonly #buttons: HTMLElement[] = [];
  #tokens: readonly TokenInfo[] = [];
  #current = 0;
  #open = false;

  constructor() {
    this.#list = h("div", {
      class: "tokens",
      role: "group",
      "aria-label": "Tokens of the answer; arrow keys move between them",
      onclick: ({ target }) => this.#press(target as HTMLElement),
    });
    this.#card = h("div", {
      class: "alternatives",
      role: "region",
      "aria-label": "Alternatives",
      "aria-live": "polite",
      // So that a click in it does not take the focus elsewhere, which closes it.
      tabindex: -1,
      hidden: true,
    });
    const onfocusout = (event: Event) => {
      const { relatedTarget } = event as FocusEvent;
      if (this.#open && !this.element.contains(relatedTarget as Node | null)) {
        this.#close();
      }
    };
    const onkeydown = (event: Event) => this.#key(event as KeyboardEvent);
    this.element = h(
      "div",
      { class: "tokens-view", onfocusout, onkeydown },
      this.#list,
      this.#card,
    );
  }

  /** Shows further tokens; those that were shown before are the same. */
  show(tokens: readonly TokenInfo[]) {
    this.#tokens = tokens;
    for (const token of tokens.slice(this.#buttons.length)) {
      // What templates put before answers is no part of them.
      const text = this.#buttons.length === 0
        ? token.text.trimStart()
        : token.text;
      // Not a button element: that is a box, and would not wrap as text does.
      const button = h("span", {
        role: "button",
        class: `token ${likelihood(Math.exp(token.logprob))}`,
        "aria-expanded": "false",
        "aria-label": `${visible(token.text)}, ${percent(token.logprob)}`,
        tabindex: this.#buttons.length === 0 ? 0 : -1,
      }, text.replaceAll("\n", "⏎\n"));
      this.#buttons.push(button);
      this.#list.append(button);
    }
  }

  #close() {
    this.#open = false;
    this.#card.hidden = true;
    this.#buttons[this.#current].setAttribute("aria-expanded", "false");
  }

  #select(at: number, open: boolean) {
    const before = this.#buttons[this.#current];
    before.tabIndex = -1;
    this.#close();
    this.#current = at;
    this.#open = open;
    const button = this.#buttons[at];
    button.tabIndex = 0;
    button.setAttribute("aria-expanded", `${open}`);
    button.focus({ preventScroll: !open });
    this.#card.hidden = !open;
    if (!open) return;
    this.#card.replaceChildren(alternatives(this.#tokens[at]));
    // Below the token, and not beyond the right edge.
    const first = button.getClientRects()[0];
    const box = this.element.getBoundingClientRect();
    const left = Math.min(
      first.left - box.left,
      box.width - this.#card.offsetWidth,
    );
    this.#card.style.left = `${Math.max(0, left)}px`;
    this.#card.style.top = `${first.bottom - box.top + 6}px`;
    this.#card.scrollIntoView({ block: "nearest" });
  }

  /** Opens the alternatives of a token, or closes them. */
  #press(token: HTMLElement) {
    const at = this.#buttons.indexOf(token);
    if (at >= 0) this.#select(at, !(this.#open && at === this.#current));
  }

  #key(event: KeyboardEvent) {
    const last = this.#buttons.length - 1;
    const to: Record<string, number> = {
      ArrowRight: Math.min(this.#current + 1, last),
      ArrowLeft: Math.max(this.#current - 1, 0),
      Home: 0,
      End: last,
    };
    if (event.key in to && last >= 0) {
      event.preventDefault();
      this.#select(to[event.key], this.#open);
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.#press(event.target as HTMLElement);
    } else if (event.key === "Escape" && this.#open) {
      event.stopPropagation();
      this.#select(this.#current, false);
    }
  }
}

/** What the colours mean. */
export function legend(): HTMLElement {
  const names = ["< 5%", "< 25%", "< 50%", "< 80%", "more"];
  return h(
    "p",
    { class: "legend" },
    h("span", {}, "Probability"),
    ...names.map((name, i) => h("span", { class: `token p${i}` }, name)),
  );
}
