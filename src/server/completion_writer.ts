/**
 * How a text completion is written: whole, or in chunks.
 *
 * @module
 */
import type { TokenLogprob, TokenLogprobs } from "../generate/generation.ts";
import type { AnswerHead, ChoiceWriter } from "./chat_writer.ts";
import type { ChoiceEnd } from "./choice.ts";

/** The object of an answer and of its chunks. */
export const COMPLETION_OBJECT = "text_completion";

/** A token of the prompt that is repeated; the first one has no log-probability. */
export type EchoedToken = Omit<TokenLogprobs, "logprob"> & {
  logprob: number | null;
};

/** A token as a key: one that is no whole character is told by its bytes. */
function keyOf({ text, bytes }: Pick<TokenLogprob, "text" | "bytes">): string {
  if (!text.includes("\ufffd")) return text;
  return `bytes:${
    Array.from(bytes, (byte) => `\\x${byte.toString(16).padStart(2, "0")}`)
      .join("")
  }`;
}

/** A choice of a text completion. */
export class CompletionChoice implements ChoiceWriter {
  readonly #index: number;
  readonly #withLogprobs: boolean;
  /** An event, up to its text. */
  readonly #head: string;
  #text: string;
  #logprobs: EchoedToken[];
  /** Characters before the next token. */
  #offset = 0;

  /** @param echo what comes before the model's text */
  constructor(
    { id, created, model }: AnswerHead,
    index: number,
    { logprobs, echo }: {
      logprobs: boolean;
      echo?: { text: string; tokens: readonly EchoedToken[] };
    },
  ) {
    this.#index = index;
    this.#withLogprobs = logprobs;
    const head = { id, object: COMPLETION_OBJECT, created, model };
    this.#head = `data: ${
      JSON.stringify(head).slice(0, -1)
    },"choices":[{"index":${index},"text":`;
    this.#text = echo?.text ?? "";
    this.#logprobs = [...echo?.tokens ?? []];
  }

  text(text: string, logprobs: readonly TokenLogprobs[] | undefined) {
    this.#text += text;
    if (logprobs) { for (const each of logprobs) this.#logprobs.push(each); }
  }

  call() {}

  callArguments() {}

  #takeLogprobs(): unknown {
    if (!this.#withLogprobs) return null;
    const list = this.#logprobs;
    this.#logprobs = [];
    const offsets = list.map(({ text }) => {
      const at = this.#offset;
      this.#offset += text.length;
      return at;
    });
    return {
      tokens: list.map(keyOf),
      token_logprobs: list.map(({ logprob }) => logprob),
      top_logprobs: list.map(({ top, logprob }) =>
        logprob === null
          ? null
          : Object.fromEntries(top.map((each) => [keyOf(each), each.logprob]))
      ),
      text_offset: offsets,
    };
  }

  #event(reason: string): string {
    const text = JSON.stringify(this.#text);
    const logprobs = JSON.stringify(this.#takeLogprobs());
    this.#text = "";
    return `${this.#head}${text},"logprobs":${logprobs},"finish_reason":${reason}}]}\n\n`;
  }

  drain(): string {
    if (this.#text === "" && this.#logprobs.length === 0) return "";
    return this.#event("null");
  }

  finish({ finishReason }: ChoiceEnd): string {
    return this.#event(JSON.stringify(finishReason));
  }

  choice({ finishReason }: ChoiceEnd): unknown {
    return {
      index: this.#index,
      text: this.#text,
      logprobs: this.#takeLogprobs(),
      finish_reason: finishReason,
    };
  }
}
