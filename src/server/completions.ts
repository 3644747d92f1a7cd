/**
 * `POST /v1/completions`
 *
 * @module
 */
import type { Tokenizer } from "../text/tokenizer.ts";
import { answer, type PlannedChoice } from "./answer.ts";
import { type ChoiceRun, runText } from "./choice.ts";
import {
  COMPLETION_OBJECT,
  CompletionChoice,
  type EchoedToken,
} from "./completion_writer.ts";
import { promptLogprobs } from "./echo.ts";
import { ApiError, badField } from "./error.ts";
import type { Exchange } from "./exchange.ts";
import { Fields } from "./fields.ts";
import { readSampling } from "./sampling.ts";
import type { Service } from "./service.ts";

/** A prompt, as text or as tokens. */
type Prompt = string | readonly number[];

function isIds(value: unknown): value is number[] {
  return Array.isArray(value) && value.length > 0 &&
    value.every((id) => typeof id === "number");
}

/** The prompts: a text, ids, or a list of either. */
function readPrompts(request: Fields, most: number): Prompt[] {
  const value = request.required("prompt", request.value("prompt"));
  const right = "a string, an array of strings, an array of token ids, or an " +
    "array of such arrays";
  if (typeof value === "string" || isIds(value)) return [value];
  if (!Array.isArray(value) || value.length === 0) {
    return request.fail("prompt", right);
  }
  if (value.length > most) {
    return request.fail("prompt", `an array of at most ${most} prompts`);
  }
  return value.map((each: unknown, i) => {
    if (typeof each === "string" || isIds(each)) return each;
    throw badField(`prompt[${i}]`, each, "a string or an array of token ids");
  });
}

/** The tokens that ask for what is between two texts. */
function fillInTheMiddle(
  tokenizer: Tokenizer,
  prefix: string,
  suffix: string,
): number[] {
  const [begin, hole, end] = ["begin", "hole", "end"].map((name) => {
    const ids = tokenizer.encode(`<｜fim▁${name}｜>`, {
      addSpecialTokens: false,
      allowSpecial: true,
    });
    if (ids.length === 1) return ids[0];
    throw new ApiError(
      400,
      "Invalid 'suffix': this model's tokenizer has no tokens for filling in " +
        "the middle",
      { param: "suffix", code: "unsupported_parameter" },
    );
  });
  const plain = (text: string) =>
    tokenizer.encode(text, { addSpecialTokens: false });
  // The beginning of a text, as the tokenizer has it.
  const start = tokenizer.encode("");
  return [
    ...start,
    begin,
    ...plain(prefix),
    hole,
    ...plain(suffix),
    end,
  ];
}

/**
 * Answers it.
 *
 * @throws ApiError
 */
export async function completion(
  service: Service,
  exchange: Exchange,
  body: unknown,
): Promise<Response> {
  const { model, settings } = service;
  const { tokenizer, config: { vocab_size } } = model;
  const request = new Fields(body);
  service.checkModel(request);
  const prompts = readPrompts(request, settings.maxChoices);
  const maxTokens = request.integer("max_tokens", {
    min: 0,
    max: Number.MAX_SAFE_INTEGER,
  }) ?? 16;
  const sampling = readSampling(request, settings, vocab_size, maxTokens);
  const total = prompts.length * sampling.n;
  if (total > settings.maxChoices) {
    request.fail(
      "n",
      `at most ${settings.maxChoices} for all prompts together`,
    );
  }
  const bestOf = request.integer("best_of", { min: 1, max: 128 });
  if (bestOf !== undefined && bestOf !== sampling.n) {
    request.fail("best_of", "absent or equal to n");
  }
  const logprobs = request.integer("logprobs", { min: 0, max: 20 });
  const echo = request.boolean("echo") ?? false;
  const suffix = request.string("suffix");
  if (echo && suffix !== undefined) {
    request.fail("echo", "absent or false beside suffix");
  }

  const head = {
    id: `cmpl-${exchange.id.slice(4)}`,
    created: Math.floor(Date.now() / 1000),
    model: settings.modelId,
  };
  const encode = (prompt: Prompt): number[] => {
    if (typeof prompt !== "string") {
      const wrong = prompt.find((id) =>
        !(Number.isInteger(id) && id >= 0 && id < vocab_size)
      );
      if (wrong === undefined) return [...prompt];
      throw badField("prompt", wrong, `of token ids below ${vocab_size}`);
    }
    service.checkText(prompt.length + (suffix?.length ?? 0), "prompt");
    return suffix === undefined
      ? tokenizer.encode(prompt)
      : fillInTheMiddle(tokenizer, prompt, suffix);
  };
  const encoded = prompts.map((prompt) => {
    const tokens = encode(prompt);
    service.checkPrompt(tokens, "prompt");
    return tokens;
  });
  const echoed = await Promise.all(encoded.map(async (tokens, i) => {
    if (!echo) return undefined;
    const given = prompts[i];
    // The token that begins every text is not part of this one.
    const added = typeof given === "string" ? tokenizer.encode("").length : 0;
    const shown: EchoedToken[] = logprobs === undefined
      ? []
      : (await promptLogprobs(model, tokens, logprobs, exchange.signal))
        .slice(added);
    const text = typeof given === "string" ? given : tokenizer.decode(given);
    return { text, tokens: shown };
  }));
  const choices = Array.from({ length: total }, (_, index): PlannedChoice => {
    const which = Math.floor(index / sampling.n);
    const prompt = encoded[which];
    const writer = new CompletionChoice(head, index, {
      logprobs: logprobs !== undefined,
      echo: echoed[which],
    });
    const options = {
      ...sampling.options,
      logprobs,
      seed: sampling.seed + index % sampling.n,
    };
    const run = (run: ChoiceRun, changed: () => void) =>
      runText(run, prompt, options, {
        text(text, list) {
          if (text === "" && !list?.length) return;
          writer.text(text, list);
          changed();
        },
        call() {},
        callArguments() {},
      });
    return { prompt, writer, run };
  });
  return await answer(service, exchange, {
    head,
    objects: { whole: COMPLETION_OBJECT, chunk: COMPLETION_OBJECT },
    sampling,
    choices,
    param: "prompt",
  });
}
