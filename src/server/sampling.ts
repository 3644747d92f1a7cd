/**
 * The options that chat and text completions share.
 *
 * @module
 */
import type { GenerateOptions } from "../generate/options.ts";
import { badField } from "./error.ts";
import type { Fields } from "./fields.ts";
import type { Settings } from "./options.ts";

/** How a request wants its tokens drawn and its answer sent. */
export interface Sampling {
  options: GenerateOptions;
  /** Choices of each prompt. */
  n: number;
  /** Of the first choice; the others count up from it. */
  seed: number;
  stream: boolean;
  /** Whether a stream ends with a chunk of the usage. */
  includeUsage: boolean;
}

const MAX_STOPS = 16;
const MAX_STOP_LENGTH = 1000;

function stopStrings(fields: Fields): string[] {
  const value = fields.value("stop");
  if (value === undefined) return [];
  const list: readonly unknown[] = Array.isArray(value) ? value : [value];
  if (list.length > MAX_STOPS) {
    fields.fail("stop", `at most ${MAX_STOPS} strings`);
  }
  return list.map((stop) => {
    const right = typeof stop === "string" && stop !== "" &&
      stop.length <= MAX_STOP_LENGTH;
    return right ? stop : fields.fail(
      "stop",
      `a string or an array of strings of 1 to ${MAX_STOP_LENGTH} characters`,
    );
  });
}

function logitBias(
  fields: Fields,
  vocabSize: number,
): Record<number, number> | undefined {
  const object = fields.fields("logit_bias")?.object;
  if (object === undefined) return undefined;
  const bias: Record<number, number> = {};
  for (const [key, value] of Object.entries(object)) {
    if (!/^\d{1,9}$/.test(key) || Number(key) >= vocabSize) {
      throw badField(
        "logit_bias",
        key,
        `an object whose keys are token ids below ${vocabSize}`,
      );
    }
    if (typeof value !== "number" || value < -100 || value > 100) {
      throw badField(
        `logit_bias.${key}`,
        value,
        "a number in [-100, 100]",
      );
    }
    // OpenAI's word for "never".
    bias[Number(key)] = value === -100 ? -Infinity : value;
  }
  return bias;
}

function tokenIds(fields: Fields, name: string, vocabSize: number) {
  return fields.array(name)?.map((id) =>
    Number.isInteger(id) && Number(id) >= 0 && Number(id) < vocabSize
      ? Number(id)
      : fields.fail(name, `an array of token ids below ${vocabSize}`)
  );
}

/** Any integer is a seed; the library's are in [0, 2^53). */
function seedOf(fields: Fields, choices: number): number {
  const value = fields.integer("seed", { min: -(2 ** 63), max: 2 ** 63 });
  // Room for the seeds of further choices.
  const limit = Number.MAX_SAFE_INTEGER - choices;
  if (value === undefined) {
    const [high, low] = crypto.getRandomValues(new Uint32Array(2));
    return ((high & 0xfffff) * 2 ** 32 + low) % limit;
  }
  const rest = value % limit;
  return rest < 0 ? rest + limit : rest;
}

/**
 * Reads them.
 *
 * @param maxTokens what the request says of it, under its endpoint's name
 * @throws ApiError 400
 */
export function readSampling(
  fields: Fields,
  settings: Settings,
  vocabSize: number,
  maxTokens: number | undefined,
): Sampling {
  const n = fields.integer("n", { min: 1, max: settings.maxChoices }) ?? 1;
  const topP = fields.number("top_p", { min: 0, max: 1 });
  const stream = fields.boolean("stream") ?? false;
  const streamOptions = fields.fields("stream_options");
  if (streamOptions && !stream) {
    fields.fail("stream_options", "absent unless stream is true");
  }
  const penalty = { min: -2, max: 2 };
  const most = Math.min(maxTokens ?? Infinity, settings.maxTokens);
  const options: GenerateOptions = {
    maxTokens: most,
    minTokens: fields.integer("min_tokens", { min: 0, max: most }),
    temperature: fields.number("temperature", { min: 0, max: 2 }),
    // 0 keeps the most likely token, as the least that is left.
    topP: topP === 0 ? Number.EPSILON : topP,
    topK: fields.integer("top_k", { min: -1, max: 2 ** 31 - 1 }),
    minP: fields.number("min_p", { min: 0, max: 1 }),
    repetitionPenalty: fields.number("repetition_penalty", {
      min: 0.01,
      max: 100,
    }),
    presencePenalty: fields.number("presence_penalty", penalty),
    frequencyPenalty: fields.number("frequency_penalty", penalty),
    logitBias: logitBias(fields, vocabSize),
    stop: stopStrings(fields),
    stopTokens: tokenIds(fields, "stop_token_ids", vocabSize),
    ignoreEos: fields.boolean("ignore_eos"),
  };
  if (options.topK === -1) options.topK = 0;
  return {
    options,
    n,
    seed: seedOf(fields, settings.maxChoices),
    stream,
    includeUsage: streamOptions?.boolean("include_usage") ?? false,
  };
}
