/**
 * Marks that keep the text of messages apart from the template's own text.
 *
 * A template joins both into one string, in which the same characters may be a
 * control token or what somebody typed. So before rendering, whatever in a
 * message looks like an added token, or like a part of one at its edges, gets a
 * mark: a private-use character that occurs nowhere else. After rendering the
 * marks tell the two apart, and are removed.
 *
 * @module
 */

import type { AddedToken, AddedTokens, Segment } from "./added_tokens.ts";

/**
 * Where the mark of a match stands. `inside` cannot be separated from the match
 * by anything a template does, but hides the match from a template that looks
 * for it; `before` and `after` leave it whole.
 */
export type Place = "inside" | "before" | "after";

/** The places, in the order in which they are tried. */
export const PLACES: readonly Place[] = ["inside", "before", "after"];

const PRIVATE_USE = /\p{Co}/gu;

/** The private-use characters that do not occur in `texts`. */
function* unused(texts: readonly string[]): Generator<string, never> {
  const used = new Set(texts.flatMap((text) => text.match(PRIVATE_USE) ?? []));
  for (const [from, to] of [[0xe000, 0xf8ff], [0xf0000, 0xffffd]]) {
    for (let code = from; code <= to; code++) {
      const mark = String.fromCodePoint(code);
      if (!used.has(mark)) yield mark;
    }
  }
  throw new RangeError(
    "Cannot encode messages: they use up the private-use characters, " +
      "and one must be left",
  );
}

/** A set of marks for one conversation. */
export class Marks {
  readonly #added: AddedTokens;
  readonly #unused: Generator<string, never>;
  /** Breaks a match, or an edge. */
  readonly #inside: string;
  /** Marks that stand beside a match, by its content. */
  readonly #beside = new Map<string, { before: string; after: string }>();
  /** The contents that a mark beside a match speaks of. */
  readonly #meaning = new Map<string, string>();

  /**
   * @param added The added tokens to keep apart.
   * @param texts All strings of the conversation.
   */
  constructor(added: AddedTokens, texts: readonly string[]) {
    this.#added = added;
    this.#unused = unused(texts);
    this.#inside = this.#unused.next().value;
  }

  /**
   * The text with its marks; without any it has nothing to keep apart.
   *
   * @param counts Says which added tokens to look for.
   */
  mark(
    text: string,
    place: Place,
    counts: (token: AddedToken) => boolean,
  ): string {
    const marks: { at: number; mark: string }[] = [];
    if (this.#added.mayContinue(text)) {
      marks.push({ at: 0, mark: this.#inside });
    }
    for (const { start, token } of this.#added.occurrences(text)) {
      if (!counts(token)) continue;
      const { content } = token;
      const first = content.codePointAt(0)! > 0xffff ? 2 : 1;
      if (place === "inside" && content.length > first) {
        marks.push({ at: start + first, mark: this.#inside });
      } else if (place === "after") {
        const { after } = this.#marksOf(content);
        marks.push({ at: start + content.length, mark: after });
      } else {
        marks.push({ at: start, mark: this.#marksOf(content).before });
      }
    }
    if (this.#added.mayBegin(text)) {
      marks.push({ at: text.length, mark: this.#inside });
    }
    marks.sort((a, b) => a.at - b.at);
    let marked = "";
    let from = 0;
    for (const { at, mark } of marks) {
      marked += text.slice(from, at) + mark;
      from = at;
    }
    return marked + text.slice(from);
  }

  #marksOf(content: string): { before: string; after: string } {
    let marks = this.#beside.get(content);
    if (marks === undefined) {
      marks = {
        before: this.#unused.next().value,
        after: this.#unused.next().value,
      };
      this.#beside.set(content, marks);
      this.#meaning.set(marks.before, content).set(marks.after, content);
    }
    return marks;
  }

  /** The text without marks. */
  unmark(text: string): string {
    return text.replace(
      PRIVATE_USE,
      (char) => char === this.#inside || this.#meaning.has(char) ? "" : char,
    );
  }

  /** A rendered text, cut at the added tokens that the template wrote. */
  split(rendered: string): Segment[] {
    return this.#added.split(rendered, (text, start, end, { content }) => {
      const before = String.fromCodePoint(
        text.codePointAt(lastCharacter(text, start)) ?? 0,
      );
      const after = String.fromCodePoint(text.codePointAt(end) ?? 0);
      // The mark speaks of the longest token at that place; what a template
      // left of it is no more the template's own.
      return this.#meaning.get(before)?.startsWith(content) === true ||
        this.#meaning.get(after)?.endsWith(content) === true;
    }).map((part) => typeof part === "number" ? part : this.unmark(part))
      .filter((part) => part !== "");
  }
}

/** Where the character that ends at `end` begins; -1 at the beginning. */
function lastCharacter(text: string, end: number): number {
  const unit = text.charCodeAt(end - 1);
  return unit >= 0xdc00 && unit <= 0xdfff ? end - 2 : end - 1;
}
