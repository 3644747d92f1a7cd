/**
 * Chat templates: from messages to text, and to pieces in which only the
 * template's own text forms control tokens.
 *
 * @module
 */

import { Template } from "@huggingface/jinja";
import { describe } from "../arguments.ts";
import { CheckpointError } from "../errors.ts";
import type { AddedToken, AddedTokens, Segment } from "./added_tokens.ts";
import { Marks, type Place, PLACES } from "./marks.ts";
import type { Message } from "./message.ts";

/** A conversation this long at most gets marks chosen string by string. */
const MAX_SINGLE_TRIES = 64;
const MAX_DEPTH = 64;

/** What a template is made of. */
export interface ChatTemplateSource {
  /** The Jinja source. */
  readonly template: string;
  /** The file it came from, for errors. */
  readonly file: string;
  /** `bos_token`, `eos_token` and the like, as strings. */
  readonly specialTokens: Readonly<Record<string, string>>;
  /** The tokenizer's added tokens. */
  readonly added: AddedTokens;
  /** Whether generated text leaves this token out. */
  readonly isSpecial: (id: number) => boolean;
}

/** Rewrites one string of a message: its text, and whether the model wrote it. */
type Rewrite = (text: string, generated: boolean) => string;

/** A chat template, compiled at its first use. */
export class ChatTemplate {
  readonly #source: ChatTemplateSource;
  #compiled: Template | undefined;
  #emptyContent: "" | null | undefined;

  constructor(source: ChatTemplateSource) {
    this.#source = source;
  }

  /**
   * The conversation as text.
   *
   * @throws {CheckpointError} When the template is no valid Jinja.
   * @throws {RangeError} When the template refuses the messages.
   */
  render(messages: readonly Message[], addGenerationPrompt: boolean): string {
    return this.#run(
      this.#rewrite(messages, (text) => text),
      addGenerationPrompt,
    );
  }

  /**
   * The conversation as added tokens and plain text between them: the
   * template's own text forms added tokens, what messages contain does not.
   * Only an assistant's content may form those that generated text shows, as
   * `</think>` in some tokenizers: there they were tokens.
   *
   * @throws {CheckpointError | RangeError} As `render` does.
   */
  segments(
    messages: readonly Message[],
    addGenerationPrompt: boolean,
  ): Segment[] {
    const texts: string[] = [];
    const plain = this.#rewrite(messages, (text) => (texts.push(text), text));
    const rendered = this.#run(plain, addGenerationPrompt);
    const marks = new Marks(this.#source.added, [rendered, ...texts]);

    /** The rendered text with marks in the strings that have a place. */
    const renderMarked = (placeOf: (index: number) => Place | undefined) => {
      let index = 0;
      const marked = this.#rewrite(messages, (text, generated) => {
        const place = placeOf(index++);
        return place === undefined
          ? text
          : this.#mark(marks, text, place, generated);
      });
      return this.#run(marked, addGenerationPrompt);
    };
    // A template may look for what a mark hides, or even refuse it.
    const unchanged = (placeOf: (index: number) => Place | undefined) => {
      try {
        const marked = renderMarked(placeOf);
        return marks.unmark(marked) === rendered ? marked : undefined;
      } catch (error) {
        if (error instanceof RangeError) return undefined;
        throw error;
      }
    };

    const delicate = new Map<number, Place>();
    let index = 0;
    this.#rewrite(messages, (text, generated) => {
      if (this.#mark(marks, text, "inside", generated) !== text) {
        delicate.set(index, "inside");
      }
      index++;
      return text;
    });
    if (delicate.size === 0) return this.#source.added.split(rendered);
    for (const place of PLACES) {
      const marked = unchanged(() => place);
      if (marked !== undefined) return marks.split(marked);
    }
    if (delicate.size <= MAX_SINGLE_TRIES) {
      for (const one of delicate.keys()) {
        const place = PLACES.find((place) =>
          unchanged((index) => index === one ? place : undefined) !== undefined
        );
        if (place !== undefined) delicate.set(one, place);
      }
    }
    // Where no place leaves the template's logic alone, it sees the mark:
    // better another reading of odd text than a forged control token.
    return marks.split(renderMarked((index) => delicate.get(index)));
  }

  #mark(marks: Marks, text: string, place: Place, generated: boolean): string {
    const { isSpecial } = this.#source;
    const counts = (token: AddedToken) => !generated || isSpecial(token.id);
    return marks.mark(text, place, counts);
  }

  /**
   * The assistant's message for a generated text. Some templates put a space
   * (or more) between the generation prompt and the answer, which the model
   * then generates: its content goes without, so that rendering the longer
   * conversation continues the tokens that a cache holds.
   *
   * @param text What was generated.
   * @param messages The conversation that was answered, when there was one.
   */
  answer(text: string, messages?: readonly Message[]): Message {
    const asked = messages ?? [{ role: "user", content: "Hi" }];
    const reply = (content: string): Message => ({
      role: "assistant",
      content,
    });
    try {
      const prompt = this.render(asked, true);
      const probe = "\uf8ff";
      const probed = this.render([...asked, reply(probe)], false);
      const at = probed.lastIndexOf(probe);
      if (!probed.startsWith(prompt) || at <= prompt.length) return reply(text);
      const put = probed.slice(prompt.length, at);
      if (!text.startsWith(put)) return reply(text);
      const shorter = reply(text.slice(put.length));
      const continued = this.render([...asked, shorter], false);
      return continued.startsWith(prompt + text) ? shorter : reply(text);
    } catch (error) {
      if (error instanceof RangeError || error instanceof CheckpointError) {
        return reply(text); // a template that takes no such conversation
      }
      throw error;
    }
  }

  /** Copies the messages for the template, each string rewritten. */
  #rewrite(messages: readonly Message[], rewrite: Rewrite): unknown[] {
    return messages.map((message, i) => {
      const generated = message.role === "assistant";
      const calls = message.tool_calls?.length ?? 0;
      const rewritten = (name: string, value: unknown) => {
        if (name === "role") return value;
        if (name !== "content") {
          return rewriteDeep(value, rewrite, `messages[${i}].${name}`, 0);
        }
        return message.content === "" && calls > 0
          ? this.#contentBesideCalls()
          : rewrite(message.content.toWellFormed(), generated);
      };
      return Object.fromEntries(
        Object.entries(message)
          .filter(([, value]) => value !== undefined)
          .map(([name, value]) => [name, rewritten(name, value)]),
      );
    });
  }

  /**
   * What stands for no content beside tool calls: some templates show the calls
   * only where the content is none.
   */
  #contentBesideCalls(): "" | null {
    if (this.#emptyContent !== undefined) return this.#emptyContent;
    const name = "\uf8ff";
    const call = { type: "function", function: { name, arguments: "{}" } };
    const shows = (content: "" | null) => {
      const reply = { role: "assistant", content, tool_calls: [call] };
      try {
        return this.#run([{ role: "user", content: "Hi" }, reply], false)
          .includes(name);
      } catch (error) {
        if (error instanceof RangeError) return false;
        throw error;
      }
    };
    return this.#emptyContent = !shows("") && shows(null) ? null : "";
  }

  #run(messages: unknown[], addGenerationPrompt: boolean): string {
    const template = this.#compiled ??= this.#compile();
    try {
      return template.render({
        ...this.#source.specialTokens,
        messages,
        add_generation_prompt: addGenerationPrompt,
        // Templates ask whether they are none.
        tools: null,
        documents: null,
      });
    } catch (error) {
      throw new RangeError(
        `Cannot render messages: the chat template of ${this.#source.file} ` +
          `refuses them: ${reason(error)}`,
        { cause: error },
      );
    }
  }

  #compile(): Template {
    try {
      return new Template(this.#source.template);
    } catch (error) {
      throw new CheckpointError(
        `${this.#source.file}: chat_template cannot be parsed: ${
          reason(error)
        }`,
        { cause: error },
      );
    }
  }
}

function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Copies a value of a message, each string and each key rewritten. */
function rewriteDeep(
  value: unknown,
  rewrite: Rewrite,
  name: string,
  depth: number,
): unknown {
  if (typeof value === "string") return rewrite(value.toWellFormed(), false);
  if (typeof value !== "object" || value === null) {
    if (["function", "symbol", "bigint"].includes(typeof value)) {
      throw new TypeError(
        `Cannot render messages: ${name} is ${
          describe(typeof value === "symbol" ? "a symbol" : value)
        }, and must be a value that JSON can hold`,
      );
    }
    return value;
  }
  if (depth === MAX_DEPTH) {
    throw new RangeError(
      `Cannot render messages: ${name} is nested deeper than ${MAX_DEPTH} ` +
        "levels, and must not be",
    );
  }
  const next = (each: unknown) => rewriteDeep(each, rewrite, name, depth + 1);
  if (Array.isArray(value)) return value.map(next);
  return Object.fromEntries(
    Object.entries(value)
      .filter(([, each]) => each !== undefined)
      .map(([key, each]) => [rewrite(key.toWellFormed(), false), next(each)]),
  );
}
