/**
 * One choice of an answer: text from the model, or calls of tools.
 *
 * @module
 */
import type {
  GenerationResult,
  TokenLogprobs,
} from "../generate/generation.ts";
import type { GenerateOptions } from "../generate/options.ts";
import type { Model } from "../model/model.ts";
import type { Metrics } from "./metrics.ts";

/** Takes what a choice consists of, as it appears. */
export interface ChoiceSink {
  text(text: string, logprobs: readonly TokenLogprobs[] | undefined): void;
  /** A call of a tool begins. */
  call(id: string, name: string): void;
  /** A piece of its arguments, JSON. */
  callArguments(text: string): void;
}

/** How a choice ended. */
export interface ChoiceEnd {
  finishReason: "stop" | "length" | "tool_calls";
  promptTokens: number;
  cachedTokens: number;
  completionTokens: number;
}

/** What generating a choice needs. */
export interface ChoiceRun {
  model: Model;
  metrics: Metrics;
  /** Ends it. */
  signal: AbortSignal;
  /** Called with each token's time, as `performance.now()` tells it. */
  onToken(now: number): void;
}

/** Counts the tokens of one choice, and watches the time from one to the next. */
export function tokenClock(
  metrics: Metrics,
  started: number,
  onFirst: (milliseconds: number) => void,
): (now: number) => void {
  let last = 0;
  return (now) => {
    if (last === 0) onFirst(now - started);
    else metrics.betweenTokens.observe((now - last) / 1000);
    last = now;
    metrics.completionTokens.add();
  };
}

/** Runs a generation to its end, its text going to `onText`. */
export async function runGeneration(
  { model, signal, onToken }: ChoiceRun,
  prompt: readonly number[],
  options: GenerateOptions,
  onText: ChoiceSink["text"],
): Promise<GenerationResult> {
  const generation = model.generate(prompt, { ...options, signal });
  const { eosTokenIds } = model.tokenizer;
  for await (const { text, tokens, logprobs } of generation) {
    if (tokens.length > 0) onToken(performance.now());
    // What ends the output is no part of its text.
    const shown = logprobs?.filter(({ token }) =>
      options.ignoreEos || !eosTokenIds.includes(token)
    );
    onText(text, shown);
  }
  return await generation.result();
}

/** A choice that is text. */
export async function runText(
  run: ChoiceRun,
  prompt: readonly number[],
  options: GenerateOptions,
  sink: ChoiceSink,
): Promise<ChoiceEnd> {
  const { finishReason, usage } = await runGeneration(
    run,
    prompt,
    options,
    (text, logprobs) => sink.text(text, logprobs),
  );
  return {
    ...usage,
    finishReason: finishReason === "stop" ? "stop" : "length",
  };
}

/** Leaves out what a template puts before answers, and the model writes. */
export class Lead {
  readonly #lead: string;
  #held: string | undefined = "";

  constructor(lead: string) {
    this.#lead = lead;
  }

  /** The text without it; what may be the beginning of it is held back. */
  push(text: string): string {
    if (this.#held === undefined) return text;
    const held = this.#held + text;
    if (held.length < this.#lead.length && this.#lead.startsWith(held)) {
      this.#held = held;
      return "";
    }
    this.#held = undefined;
    return held.startsWith(this.#lead) ? held.slice(this.#lead.length) : held;
  }

  /** What was held back, when nothing follows. */
  flush(): string {
    const held = this.#held ?? "";
    this.#held = undefined;
    return held;
  }
}
