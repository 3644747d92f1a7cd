/**
 * What a server allows.
 *
 * @module
 */
import type { LogEntry } from "./log.ts";

/** Options of `createHandler()`. */
export interface ServerOptions {
  /** The model's name for clients; default: `model_type` of its config. */
  modelId?: string;
  /** Other names that requests may use for it. */
  aliases?: readonly string[];
  /** Keys that open `/v1/`; without any it is open. */
  apiKeys?: readonly string[];
  /** Bytes of a request's body at most. Default 4 MiB. */
  maxBodyBytes?: number;
  /** Milliseconds for a request's body to arrive. Default 15,000. */
  bodyTimeoutMs?: number;
  /** Milliseconds for a whole request, waiting included. Default 600,000. */
  requestTimeoutMs?: number;
  /** Tokens of a prompt at most. Default: the model's context. */
  maxPromptTokens?: number;
  /** Tokens that one choice may generate at most. Default: the model's context. */
  maxTokens?: number;
  /** Choices of one request at most: `n` times its prompts. Default 16. */
  maxChoices?: number;
  /** Generations that run at once. Default 256. */
  maxConcurrent?: number;
  /** Requests beside those that may be waiting; further ones get 429. Default 256. */
  maxQueue?: number;
  /** Origins of pages that may call the server, as `https://chat.example.org`, or `*`. Default none. */
  cors?: readonly string[];
  /** Names that a request's Host may have, as `localhost`. Default: any. */
  hosts?: readonly string[];
  /** Folder of the page that `GET /` serves, with an index.html. Default none. */
  page?: string | URL;
  /** Takes one entry for each request. Prompts and answers are never in it. */
  log?: (entry: LogEntry) => void;
}

/** Options with every default filled in. */
export interface Settings
  extends Required<Omit<ServerOptions, "page" | "log" | "modelId">> {
  modelId: string;
  page?: string | URL;
  log: (entry: LogEntry) => void;
}

/** What the defaults are made of. */
export interface SettingsSource {
  model_type: string;
  max_position_embeddings: number;
}

const DEFAULTS = {
  maxBodyBytes: 4 * 2 ** 20,
  bodyTimeoutMs: 15_000,
  requestTimeoutMs: 600_000,
  maxChoices: 16,
  maxConcurrent: 256,
  maxQueue: 256,
};

/** Timers take no more. */
const LARGEST = 2 ** 31 - 1;

/**
 * Checks a handler's options.
 *
 * @throws TypeError, RangeError
 */
export function resolveSettings(
  options: ServerOptions,
  { model_type, max_position_embeddings }: SettingsSource,
): Settings {
  const whole = (name: keyof ServerOptions, fallback: number, min = 1) => {
    const value = options[name];
    if (value === undefined) return fallback;
    if (
      typeof value === "number" && Number.isInteger(value) && value >= min &&
      value <= LARGEST
    ) return value;
    const error = typeof value === "number" ? RangeError : TypeError;
    throw new error(
      `Cannot create a handler: ${name} is ${
        String(value)
      }, and must be an integer in [${min}, ${LARGEST}]`,
    );
  };
  const maxConcurrent = whole("maxConcurrent", DEFAULTS.maxConcurrent);
  const context = max_position_embeddings;
  return {
    modelId: options.modelId ?? model_type,
    aliases: options.aliases ?? [],
    apiKeys: options.apiKeys ?? [],
    maxBodyBytes: whole("maxBodyBytes", DEFAULTS.maxBodyBytes),
    bodyTimeoutMs: whole("bodyTimeoutMs", DEFAULTS.bodyTimeoutMs),
    requestTimeoutMs: whole("requestTimeoutMs", DEFAULTS.requestTimeoutMs),
    maxPromptTokens: Math.min(whole("maxPromptTokens", context), context),
    maxTokens: whole("maxTokens", context),
    maxChoices: Math.min(
      whole("maxChoices", DEFAULTS.maxChoices),
      maxConcurrent,
    ),
    maxConcurrent,
    maxQueue: whole("maxQueue", DEFAULTS.maxQueue, 0),
    cors: options.cors ?? [],
    hosts: options.hosts ?? [],
    page: options.page,
    log: options.log ?? (() => {}),
  };
}
