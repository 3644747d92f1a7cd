/** Markdown of a model, which may write anything, as elements that can do nothing. */
import DOMPurify from "dompurify";
import { Marked, type Token, type TokensList } from "marked";
import { h, icon } from "./dom.ts";

const escape = (text: string) =>
  text.replace(
    /[&<>"]/g,
    (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]!,
  );

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    // What looks like HTML was not meant as a part of this page: it stays text.
    html({ text, block }) {
      return block ? `<p class="raw">${escape(text)}</p>` : escape(text);
    },
    // Nothing is loaded from elsewhere: an image is a link to it.
    image({ href, text }) {
      return `<a href="${escape(href)}">${escape(text || href)}</a>`;
    },
  },
});

const ALLOWED = {
  ALLOWED_TAGS: [
    ...["p", "br", "hr", "strong", "em", "del", "code", "pre", "blockquote"],
    ...["h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "a", "input"],
    ...["table", "thead", "tbody", "tr", "th", "td"],
  ],
  ALLOWED_ATTR: [
    ...["href", "title", "class", "start", "align"],
    ...["type", "checked", "disabled"],
  ],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  // Their values are no addresses, and are not held to be.
  ADD_URI_SAFE_ATTR: ["start", "align", "type"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true as const,
};

/** A button that copies a text. */
export function copyButton(text: () => string): HTMLButtonElement {
  const label = "Copy";
  const button = h("button", {
    type: "button",
    class: "icon-button",
    "aria-label": label,
    title: label,
    onclick: async () => {
      let done = "Copied";
      try {
        await navigator.clipboard.writeText(text());
      } catch {
        done = "The browser did not allow copying";
      }
      button.replaceChildren(icon(done === "Copied" ? "check" : "close"));
      button.title = done;
      button.setAttribute("aria-label", done);
      setTimeout(() => {
        button.replaceChildren(icon("copy"));
        button.title = label;
        button.setAttribute("aria-label", label);
      }, 1500);
    },
  }, icon("copy"));
  return button;
}

/** A block of code with a button that copies it. */
export function codeBlock(text: string, language = ""): HTMLElement {
  return h(
    "div",
    { class: "code" },
    h(
      "div",
      { class: "code-head" },
      h("span", {}, language),
      copyButton(() => text),
    ),
    // Focusable, so that it can be scrolled without a mouse.
    h(
      "pre",
      { tabindex: 0, "aria-label": `Code${language && ` in ${language}`}` },
      h("code", {}, text),
    ),
  );
}

function finish(fragment: DocumentFragment): DocumentFragment {
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const table of fragment.querySelectorAll("table")) {
    const scroll = h("div", { class: "table", tabindex: 0 });
    table.replaceWith(scroll);
    scroll.append(table);
  }
  for (const box of fragment.querySelectorAll("input")) {
    if (box.type !== "checkbox") box.remove();
    box.disabled = true;
  }
  for (const pre of fragment.querySelectorAll("pre")) {
    const code = pre.querySelector("code");
    const language = /language-(\S+)/.exec(code?.className ?? "")?.[1] ?? "";
    pre.replaceWith(codeBlock(pre.textContent, language));
  }
  return fragment;
}

/**
 * Shows Markdown that grows: only blocks that changed are made anew, so that a long answer costs no
 * more a token than a short one, and what somebody has selected stays.
 */
export class MarkdownView {
  readonly element = h("div", { class: "markdown" });
  #blocks: { raw: string; element: HTMLElement }[] = [];

  /** Shows a text in place of the last one. */
  show(text: string) {
    const tokens: TokensList = marked.lexer(text);
    const list = tokens.filter(({ type }) => type !== "space");
    const links = tokens.links;
    let same = 0;
    while (
      same < list.length && same < this.#blocks.length &&
      this.#blocks[same].raw === list[same].raw
    ) same++;
    for (const { element } of this.#blocks.splice(same)) element.remove();
    for (const token of list.slice(same)) {
      const element = h("div", { class: "block" });
      const one: TokensList = Object.assign([token as Token], { links });
      const clean = DOMPurify.sanitize(marked.parser(one), ALLOWED);
      element.append(finish(clean));
      this.element.append(element);
      this.#blocks.push({ raw: token.raw, element });
    }
  }
}
