/**
 * Choices in which the model may call tools. What it writes freely ends where a call begins; from
 * there on the form is written by the server, and the model chooses within it: which tool, its
 * arguments under the grammar of their schema, and whether another call follows.
 *
 * @module
 */
import type { GenerateOptions } from "../generate/options.ts";
import {
  type ChoiceEnd,
  type ChoiceRun,
  type ChoiceSink,
  runGeneration,
} from "./choice.ts";
import type { ToolFormat } from "./tool_format.ts";
import type { Tool, ToolChoice } from "./tools.ts";

/** Calls in one answer at most. */
const MAX_CALLS = 32;
/** Added to the logits of tokens of which one must come. */
const ONLY = 100;

/** The output so far, and what is left of what it may be. */
class Output {
  readonly ids: number[];
  readonly #run: ChoiceRun;
  readonly #prompt: readonly number[];
  readonly #options: GenerateOptions;
  readonly #most: number;
  #phase = 0;
  #cachedTokens: number | undefined;

  constructor(
    run: ChoiceRun,
    prompt: readonly number[],
    options: GenerateOptions,
  ) {
    this.ids = prompt.slice();
    this.#run = run;
    this.#prompt = prompt;
    this.#options = options;
    this.#most = Math.min(
      prompt.length + (options.maxTokens ?? Infinity),
      run.model.config.max_position_embeddings,
    );
  }

  /** Tokens that may still come. */
  get left(): number {
    return this.#most - this.ids.length;
  }

  /** Goes on from the tokens so far; they are not added to them. */
  async generate(options: GenerateOptions, onText: ChoiceSink["text"]) {
    const seed = (this.#options.seed ?? 0) + this.#phase++ * 2 ** 32;
    const maxTokens = Math.min(options.maxTokens ?? Infinity, this.left);
    const result = await runGeneration(
      this.#run,
      this.ids,
      { ...options, maxTokens, seed: seed % Number.MAX_SAFE_INTEGER },
      onText,
    );
    this.#cachedTokens ??= result.usage.cachedTokens;
    return result;
  }

  /** @param closing tokens that ended it and are not among the ids */
  end(finishReason: ChoiceEnd["finishReason"], closing = 0): ChoiceEnd {
    return {
      finishReason,
      promptTokens: this.#prompt.length,
      cachedTokens: this.#cachedTokens ?? 0,
      completionTokens: this.ids.length - this.#prompt.length + closing,
    };
  }
}

/** Writes freely. @returns the end, or undefined where a call begins */
async function writeFreely(
  output: Output,
  run: ChoiceRun,
  options: GenerateOptions,
  { trigger }: ToolFormat,
  sink: ChoiceSink,
): Promise<ChoiceEnd | undefined> {
  const { tokenizer } = run.model;
  const { stop = [], stopTokens = [] } = options;
  const { text, tokens, finishReason } = await output.generate(
    "token" in trigger
      ? { ...options, stopTokens: [...stopTokens, trigger.token] }
      : { ...options, stop: [...stop, trigger.text] },
    (text, logprobs) => sink.text(text, logprobs),
  );
  const encode = () => tokenizer.encode(text, { addSpecialTokens: false });
  let before: readonly number[] | undefined;
  if (finishReason === "stop" && "token" in trigger) {
    if (tokens.at(-1) === trigger.token) before = tokens.slice(0, -1);
  } else if (finishReason === "stop" && "text" in trigger) {
    const written = tokenizer.decode(tokens, { skipSpecialTokens: true });
    if (written.startsWith(trigger.text, text.length)) {
      before = text.trim() === "" ? [] : encode();
    }
  }
  output.ids.push(...before ?? tokens);
  if (before) return undefined;
  return output.end(finishReason === "stop" ? "stop" : "length");
}

/** Lets the model choose between tools by their names. */
async function chooseTool(
  output: Output,
  options: GenerateOptions,
  tools: readonly Tool[],
  middle: string,
): Promise<Tool | undefined> {
  if (tools.length === 1) return tools[0];
  // What follows the name tells it from longer ones.
  const [after] = middle;
  const choices = tools.map(({ name }) => name + after);
  const { text } = await output.generate(
    { ...options, grammar: { choices } },
    () => {},
  );
  return tools.find(({ name }) => text === name + after);
}

/**
 * A choice with tools.
 *
 * @param options of the whole choice, its seed among them
 */
export async function runTools(
  run: ChoiceRun,
  prompt: readonly number[],
  options: GenerateOptions,
  { tools, required, parallel }: ToolChoice,
  format: ToolFormat,
  sink: ChoiceSink,
): Promise<ChoiceEnd> {
  const output = new Output(run, prompt, options);
  const { tokenizer } = run.model;
  if (!required) {
    const end = await writeFreely(output, run, options, format, sink);
    if (end) return end;
  }
  // A stop string within arguments would leave half an object.
  const within: GenerateOptions = {
    ...options,
    stop: undefined,
    stopTokens: undefined,
    minTokens: undefined,
    ignoreEos: undefined,
    logprobs: undefined,
    grammar: undefined,
  };
  output.ids.push(...format.open);
  const called = new Set<string>();
  for (;;) {
    if (output.left <= 0) return output.end("length");
    const tool = await chooseTool(output, within, tools, format.middle);
    if (!tool) return output.end("length");
    const start = tokenizer.encode(tool.name + format.middle, {
      addSpecialTokens: false,
    });
    output.ids.push(...start);
    if (output.left <= 0) return output.end("length");
    sink.call(`call_${crypto.randomUUID().replaceAll("-", "")}`, tool.name);
    const { text, tokens, finishReason } = await output.generate(
      { ...within, grammar: { json: tool.schema } },
      (text) => sink.callArguments(text),
    );
    const ended = finishReason === "stop";
    output.ids.push(...ended ? tokens.slice(0, -1) : tokens);
    if (!ended) return output.end("length");
    output.ids.push(...format.close);
    // A weak model may repeat itself for ever.
    const again = called.has(tool.name + text);
    called.add(tool.name + text);
    if (!parallel || again || called.size === MAX_CALLS) break;
    if (output.left <= 0) break;
    const [next] = format.next;
    const { tokens: [chosen] } = await output.generate({
      ...within,
      maxTokens: 1,
      logitBias: { [next]: ONLY, [format.end]: ONLY },
    }, () => {});
    if (chosen !== next) break;
    output.ids.push(...format.next);
  }
  return output.end("tool_calls", 1);
}
