/**
 * The tokens that stand beside the vocabulary's merges (`added_tokens` of
 * tokenizer.json): control tokens, and whatever else must not be split.
 *
 * @module
 */

/** One entry of `added_tokens`. */
export interface AddedToken {
  /** Its id. */
  readonly id: number;
  /** Its text. */
  readonly content: string;
  /** Whether it is left out when special tokens are skipped. */
  readonly special: boolean;
  /** Whether it is looked for after normalization: after all that are not. */
  readonly normalized: boolean;
  /** Whether it takes the white space before it. */
  readonly lstrip: boolean;
  /** Whether it takes the white space after it. */
  readonly rstrip: boolean;
  /** Whether it counts only where no word character touches it. */
  readonly single_word: boolean;
}

/** A piece of a text: an added token's id, or text without any. */
export type Segment = number | string;

/** Whether the match `[start, end)` in `text` is to be taken as plain text. */
export type IsPlain = (
  text: string,
  start: number,
  end: number,
  token: AddedToken,
) => boolean;

const WORD_BEFORE = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]$/u;
const WORD_AFTER = /^[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]/u;

/** A regular expression of all contents, the longest first. */
function pattern(tokens: readonly AddedToken[]): RegExp | undefined {
  if (tokens.length === 0) return undefined;
  const texts = tokens.map((token) => token.content)
    .sort((a, b) => b.length - a.length);
  // The first character alone decides almost everywhere, and is dear to try
  // against hundreds of alternatives.
  const firsts = [...new Set(texts.map((text) => [...text][0]))];
  const ahead = firsts.map(RegExp.escape).join("|");
  return new RegExp(
    `(?=${ahead})(?:${texts.map(RegExp.escape).join("|")})`,
    "g",
  );
}

/**
 * The added tokens of a tokenizer, and how text is cut by them.
 *
 * @example
 * ```ts ignore
 * const added = new AddedTokens(tokens);
 * added.split("a<|end|>b"); // ["a", 7, "b"]
 * ```
 */
export class AddedTokens {
  /** By content. */
  readonly byContent: ReadonlyMap<string, AddedToken>;
  readonly #all: RegExp | undefined;
  readonly #passes: readonly RegExp[];
  readonly #longest: number;
  #edges: { starts: Set<string>; ends: Set<string> } | undefined;

  constructor(tokens: readonly AddedToken[]) {
    this.byContent = new Map(tokens.map((token) => [token.content, token]));
    this.#all = pattern(tokens);
    // As in the tokenizers library: the ones that are not normalized cut the
    // text first, the others what is left.
    this.#passes = [
      pattern(tokens.filter((token) => !token.normalized)),
      pattern(tokens.filter((token) => token.normalized)),
    ].filter((each) => each !== undefined);
    this.#longest = tokens.reduce((n, t) => Math.max(n, t.content.length), 0);
  }

  /** All tokens. */
  tokens(): Iterable<AddedToken> {
    return this.byContent.values();
  }

  /**
   * Cuts a text at its added tokens, from the left, the longest first.
   *
   * @param isPlain Says which matches stay text; none when absent.
   */
  split(text: string, isPlain?: IsPlain): Segment[] {
    let segments: Segment[] = [text];
    for (const pass of this.#passes) {
      segments = segments.flatMap((segment) =>
        typeof segment === "number"
          ? [segment]
          : this.#cut(segment, pass, isPlain)
      );
    }
    return segments.filter((segment) => segment !== "");
  }

  #cut(text: string, pass: RegExp, isPlain?: IsPlain): Segment[] {
    const segments: Segment[] = [];
    let from = 0;
    for (const { 0: content, index } of text.matchAll(pass)) {
      const token = this.byContent.get(content)!;
      let start = index;
      let end = index + content.length;
      if (start < from || isPlain?.(text, start, end, token)) continue;
      if (token.single_word) {
        if (WORD_BEFORE.test(text.slice(Math.max(0, start - 2), start))) {
          continue;
        }
        if (WORD_AFTER.test(text.slice(end, end + 2))) continue;
      }
      if (token.lstrip) {
        start = from + text.slice(from, start).trimEnd().length;
      }
      if (token.rstrip) {
        end = text.length - text.slice(end).trimStart().length;
      }
      segments.push(text.slice(from, start), token.id);
      from = end;
    }
    segments.push(text.slice(from));
    return segments;
  }

  /** Every place where an added token begins, also within another. */
  *occurrences(text: string): Iterable<{ start: number; token: AddedToken }> {
    if (this.#all === undefined) return;
    const { byContent } = this;
    const search = new RegExp(this.#all);
    for (;;) {
      const match = search.exec(text);
      if (match === null) return;
      yield { start: match.index, token: byContent.get(match[0])! };
      search.lastIndex = match.index + 1;
    }
  }

  /**
   * Whether text before this one could complete an added token with its
   * beginning.
   */
  mayContinue(text: string): boolean {
    const { ends } = this.#parts();
    for (let n = 1; n < this.#longest && n <= text.length; n++) {
      if (ends.has(text.slice(0, n))) return true;
    }
    if (text.length === 0 || text.length >= this.#longest - 1) return false;
    for (const content of this.byContent.keys()) {
      if (content.includes(text, 1)) return true;
    }
    return false;
  }

  /** Whether text after this one could complete an added token with its end. */
  mayBegin(text: string): boolean {
    const { starts } = this.#parts();
    for (let n = 1; n < this.#longest && n <= text.length; n++) {
      if (starts.has(text.slice(-n))) return true;
    }
    return false;
  }

  /** The proper beginnings and ends of all contents. */
  #parts(): { starts: Set<string>; ends: Set<string> } {
    if (this.#edges === undefined) {
      const starts = new Set<string>();
      const ends = new Set<string>();
      for (const content of this.byContent.keys()) {
        for (let i = 1; i < content.length; i++) {
          starts.add(content.slice(0, i));
          ends.add(content.slice(i));
        }
      }
      this.#edges = { starts, ends };
    }
    return this.#edges;
  }
}
