import * as argument from "../arguments.ts";
import type { GenerationConfig } from "../model/generation_config.ts";
import type { Cache } from "../cache/cache.ts";
import type { Grammar } from "../grammar/grammar.ts";

/** Options of `model.generate()`. */
export interface GenerateOptions {
  /** Tokens at most; default: up to the context's end. 0 only prefills. */
  maxTokens?: number;
  /** Until so many tokens, EOS and stop tokens are masked and stop strings ignored. Default 0. */
  minTokens?: number;
  /** 0 is greedy, above 0 samples. Default: as generation_config.json says, else greedy. */
  temperature?: number;
  /** Keep the k most likely, ties with the last included; 0 turns it off. */
  topK?: number;
  /** Keep the most likely until their mass reaches p (nucleus sampling); in (0, 1]. */
  topP?: number;
  /** Keep what is at least this share of the most likely one's probability; in [0, 1]. */
  minP?: number;
  /** Locally typical sampling's mass; in (0, 1]. */
  typicalP?: number;
  /** Divides (positive) or multiplies (negative) logits of tokens seen; above 0, 1 is off. */
  repetitionPenalty?: number;
  /** Subtracted from the logits of tokens in the output. */
  presencePenalty?: number;
  /** Subtracted once for each time a token is in the output. */
  frequencyPenalty?: number;
  /** Added to logits, by token id; -Infinity forbids. */
  logitBias?: Readonly<Record<number, number>>;
  /** An integer in [0, 2^53); random when absent. */
  seed?: number;
  /** Strings that end the output; they are not shown. */
  stop?: string | readonly string[];
  /** Token ids that end the output, besides EOS. */
  stopTokens?: readonly number[];
  /** Go on after EOS. Default false. */
  ignoreEos?: boolean;
  /** For each token, its log-probability and those of the n most likely. */
  logprobs?: number;
  /** Whether the automatic prefix cache may be read and fed. Default true. */
  reusePrefix?: boolean;
  /** What the output must conform to; it wins over minTokens, ignoreEos and logitBias. */
  grammar?: Grammar;
  /** The cache that shall hold prompt and answer. */
  cache?: Cache;
  /** Stops the generation. */
  signal?: AbortSignal;
}

/** Options after validation, with every default filled in. */
export interface ResolvedOptions {
  maxTokens: number;
  minTokens: number;
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  typicalP: number;
  repetitionPenalty: number;
  presencePenalty: number;
  frequencyPenalty: number;
  logitBias: readonly (readonly [token: number, bias: number])[];
  seed: number;
  stop: readonly string[];
  /** EOS among them, unless it is ignored. */
  stopTokens: readonly number[];
  logprobs: number | undefined;
}

/** What the checks need to know of the model. */
export interface OptionLimits {
  vocab_size: number;
  eosTokenIds: readonly number[];
  generationConfig: GenerationConfig | undefined;
}

const KNOWN: readonly (keyof GenerateOptions)[] = [
  "maxTokens",
  "minTokens",
  "temperature",
  "topK",
  "topP",
  "minP",
  "typicalP",
  "repetitionPenalty",
  "presencePenalty",
  "frequencyPenalty",
  "logitBias",
  "seed",
  "stop",
  "stopTokens",
  "ignoreEos",
  "logprobs",
  "reusePrefix",
  "grammar",
  "cache",
  "signal",
];

/** Most alternatives that `logprobs` may ask for. */
const MAX_LOGPROBS = 1000;

const VERB = "generate";
const wrongType = argument.wrongType.bind(undefined, VERB);
const outOfRange = argument.outOfRange.bind(undefined, VERB);

interface Range {
  min?: number;
  max?: number;
  /** The minimum itself is not allowed. */
  above?: boolean;
  integer?: boolean;
}

function number(
  name: string,
  value: unknown,
  fallback: number,
  { min = -Infinity, max = Infinity, above, integer }: Range,
): number {
  if (value === undefined) return fallback;
  const what = integer ? "an integer" : "a number";
  if (typeof value !== "number") throw wrongType(name, value, what);
  const inside = (above ? value > min : value >= min) && value <= max;
  if (!inside || !Number.isFinite(value) || integer && value % 1 !== 0) {
    const low = Number.isFinite(min)
      ? `${above ? "(" : "["}${min}`
      : "(-Infinity";
    const high = Number.isFinite(max) ? `${max}]` : "Infinity)";
    const range = `${low}, ${high}`;
    throw outOfRange(
      name,
      value,
      integer ? `an integer in ${range}` : `in ${range}`,
    );
  }
  return value;
}

function tokenId(name: string, value: unknown, vocab_size: number): number {
  if (typeof value !== "number") throw wrongType(name, value, "a token id");
  if (!Number.isInteger(value) || value < 0 || value >= vocab_size) {
    throw outOfRange(name, value, `an integer in [0, ${vocab_size})`);
  }
  return value;
}

function stopStrings(value: unknown): string[] {
  if (value === undefined) return [];
  const list: unknown = typeof value === "string" ? [value] : value;
  if (!Array.isArray(list)) {
    throw wrongType("stop", value, "a string or an array of strings");
  }
  return list.map((stop: unknown, i) => {
    if (typeof stop !== "string") {
      throw wrongType(`stop[${i}]`, stop, "a string");
    }
    if (stop === "") {
      throw outOfRange(`stop[${i}]`, stop, "at least one character long");
    }
    return stop;
  });
}

function biases(value: unknown, vocab_size: number): [number, number][] {
  if (value === undefined) return [];
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw wrongType("logitBias", value, "an object from token ids to numbers");
  }
  return Object.entries(value).map(([key, bias]) => {
    const name = `logitBias[${key}]`;
    if (!/^\d+$/.test(key) || Number(key) >= vocab_size) {
      throw outOfRange(
        "logitBias's key",
        key,
        `a token id, an integer in [0, ${vocab_size})`,
      );
    }
    if (typeof bias !== "number") throw wrongType(name, bias, "a number");
    if (Number.isNaN(bias) || bias === Infinity) {
      throw outOfRange(name, bias, "finite or -Infinity");
    }
    return [Number(key), bias];
  });
}

function randomSeed(): number {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2));
  return (high & 0x1fffff) * 2 ** 32 + low;
}

/**
 * Checks the options of a generation and fills in the model's defaults.
 *
 * @throws TypeError for a wrong type or an unknown option, RangeError for a value
 */
export function resolveOptions(
  options: GenerateOptions,
  { vocab_size, eosTokenIds, generationConfig = { eos_token_id: [] } }:
    OptionLimits,
): ResolvedOptions {
  argument.checkOptionsObject(VERB, options, KNOWN);
  for (const [name, value] of Object.entries(options)) {
    if (value === null) throw wrongType(name, value, "absent or of its type");
  }
  const { ignoreEos, reusePrefix, signal } = options;
  for (const [name, value] of Object.entries({ ignoreEos, reusePrefix })) {
    if (value !== undefined && typeof value !== "boolean") {
      throw wrongType(name, value, "a boolean");
    }
  }
  argument.checkSignal(VERB, signal);
  if (options.stopTokens !== undefined && !Array.isArray(options.stopTokens)) {
    throw wrongType("stopTokens", options.stopTokens, "an array of token ids");
  }
  const stopTokens = (options.stopTokens ?? []).map((id: unknown, i: number) =>
    tokenId(`stopTokens[${i}]`, id, vocab_size)
  );
  const maxTokens = number("maxTokens", options.maxTokens, Infinity, {
    min: 0,
    integer: true,
  });
  const asked = number("minTokens", options.minTokens, 0, {
    min: 0,
    integer: true,
  });
  // A grammar says itself when its output may end.
  const minTokens = options.grammar === undefined ? asked : 0;
  // A checkpoint that does not say that it samples is greedy.
  const sampled = generationConfig.do_sample === true;
  return {
    maxTokens,
    minTokens,
    temperature: number(
      "temperature",
      options.temperature,
      sampled ? generationConfig.temperature ?? 1 : 0,
      { min: 0, max: 1e6 },
    ),
    topK: number("topK", options.topK, generationConfig.top_k ?? 0, {
      min: 0,
      max: 2 ** 31 - 1,
      integer: true,
    }),
    topP: number("topP", options.topP, generationConfig.top_p ?? 1, {
      min: 0,
      above: true,
      max: 1,
    }),
    minP: number("minP", options.minP, generationConfig.min_p ?? 0, {
      min: 0,
      max: 1,
    }),
    typicalP: number(
      "typicalP",
      options.typicalP,
      generationConfig.typical_p ?? 1,
      { min: 0, above: true, max: 1 },
    ),
    repetitionPenalty: number(
      "repetitionPenalty",
      options.repetitionPenalty,
      generationConfig.repetition_penalty ?? 1,
      { min: 0, above: true, max: 1e6 },
    ),
    presencePenalty: number("presencePenalty", options.presencePenalty, 0, {
      min: -1e6,
      max: 1e6,
    }),
    frequencyPenalty: number("frequencyPenalty", options.frequencyPenalty, 0, {
      min: -1e6,
      max: 1e6,
    }),
    logitBias: biases(options.logitBias, vocab_size),
    seed: number("seed", options.seed, randomSeed(), {
      min: 0,
      max: Number.MAX_SAFE_INTEGER,
      integer: true,
    }),
    stop: stopStrings(options.stop),
    stopTokens: ignoreEos && options.grammar === undefined
      ? stopTokens
      : [...eosTokenIds, ...stopTokens],
    logprobs: options.logprobs === undefined
      ? undefined
      : number("logprobs", options.logprobs, 0, {
        min: 0,
        max: Math.min(MAX_LOGPROBS, vocab_size),
        integer: true,
      }),
  };
}
