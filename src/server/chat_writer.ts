/**
 * How a chat completion is written: whole, or in chunks.
 *
 * @module
 */
import type { TokenLogprob, TokenLogprobs } from "../generate/generation.ts";
import type { ChoiceEnd, ChoiceSink } from "./choice.ts";

/** What all chunks of an answer say. */
export interface AnswerHead {
  id: string;
  /** Seconds since 1970. */
  created: number;
  model: string;
}

/** One choice, collected for a whole answer or drained in pieces. */
export interface ChoiceWriter extends ChoiceSink {
  /** Events for what came since the last time. */
  drain(): string;
  /** The last event. */
  finish(end: ChoiceEnd): string;
  /** The choice of a whole answer. */
  choice(end: ChoiceEnd): unknown;
}

function oneLogprob({ text, bytes, logprob }: TokenLogprob) {
  return {
    token: text,
    // No number of JSON stands for a probability of 0.
    logprob: Math.max(logprob, -9999),
    bytes: [...bytes],
  };
}

function chatLogprobs(list: readonly TokenLogprobs[]) {
  const content = list.map((each) => ({
    ...oneLogprob(each),
    top_logprobs: each.top.map(oneLogprob),
  }));
  return { content, refusal: null };
}

/** The object of a whole answer. */
export const CHAT_OBJECT = "chat.completion";

interface Call {
  id: string;
  type: "function";
  function: { name: string; arguments: string };
}

/** A choice of a chat completion. */
export class ChatChoice implements ChoiceWriter {
  readonly #index: number;
  readonly #withLogprobs: boolean;
  /** An event, up to its delta. */
  readonly #head: string;
  /** Whether text is kept for the whole answer, or for the next chunk. */
  readonly #stream: boolean;
  #events: string[] = [];
  #text = "";
  #logprobs: TokenLogprobs[] = [];
  readonly #calls: Call[] = [];
  #arguments = "";

  constructor(
    { id, created, model }: AnswerHead,
    index: number,
    { stream, logprobs }: { stream: boolean; logprobs: boolean },
  ) {
    this.#index = index;
    this.#stream = stream;
    this.#withLogprobs = logprobs;
    const head = { id, object: "chat.completion.chunk", created, model };
    this.#head = `data: ${
      JSON.stringify(head).slice(0, -1)
    },"choices":[{"index":${index},"delta":`;
    this.#event(`{"role":"assistant","content":""}`);
  }

  #event(delta: string, logprobs = "null", reason = "null") {
    if (!this.#stream) return;
    this.#events.push(
      `${this.#head}${delta},"logprobs":${logprobs},"finish_reason":${reason}}]}\n\n`,
    );
  }

  text(text: string, logprobs: readonly TokenLogprobs[] | undefined) {
    this.#text += text;
    if (logprobs) { for (const each of logprobs) this.#logprobs.push(each); }
  }

  call(id: string, name: string) {
    this.#settle();
    const called: Call = {
      id,
      type: "function",
      function: { name, arguments: "" },
    };
    this.#calls.push(called);
    const index = this.#calls.length - 1;
    this.#event(JSON.stringify({ tool_calls: [{ index, ...called }] }));
  }

  callArguments(text: string) {
    this.#arguments += text;
    const call = this.#calls[this.#calls.length - 1];
    if (!this.#stream) call.function.arguments += text;
  }

  /** Makes events of the text so far. */
  #settle() {
    if (!this.#stream) return;
    if (this.#text !== "" || this.#logprobs.length > 0) {
      const logprobs = this.#withLogprobs
        ? JSON.stringify(chatLogprobs(this.#logprobs))
        : undefined;
      this.#event(`{"content":${JSON.stringify(this.#text)}}`, logprobs);
      this.#text = "";
      this.#logprobs = [];
    }
    if (this.#arguments !== "") {
      const index = this.#calls.length - 1;
      const called = { index, function: { arguments: this.#arguments } };
      this.#event(JSON.stringify({ tool_calls: [called] }));
      this.#arguments = "";
    }
  }

  drain(): string {
    this.#settle();
    const events = this.#events.join("");
    this.#events = [];
    return events;
  }

  finish({ finishReason }: ChoiceEnd): string {
    this.#event("{}", undefined, JSON.stringify(finishReason));
    return this.drain();
  }

  choice({ finishReason }: ChoiceEnd): unknown {
    const calls = this.#calls.length > 0;
    return {
      index: this.#index,
      message: {
        role: "assistant",
        content: calls && this.#text === "" ? null : this.#text,
        refusal: null,
        ...calls ? { tool_calls: this.#calls } : {},
      },
      logprobs: this.#withLogprobs ? chatLogprobs(this.#logprobs) : null,
      finish_reason: finishReason,
    };
  }
}
