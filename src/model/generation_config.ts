/**
 * `generation_config.json`: the sampling defaults that a checkpoint brings.
 *
 * @module
 */

import { parseTokenIds } from "./config.ts";
import { Fields } from "./fields.ts";

/** The fields that matter here, under the file's names; absent stays absent. */
export interface GenerationConfig {
  /** false means greedy. */
  readonly do_sample?: boolean;
  /** At least 0. */
  readonly temperature?: number;
  /** Keep that many of the most likely; 0 turns it off. */
  readonly top_k?: number;
  /** In (0, 1]. */
  readonly top_p?: number;
  /** In [0, 1]. */
  readonly min_p?: number;
  /** In (0, 1]. */
  readonly typical_p?: number;
  /** Above 0; 1 turns it off. */
  readonly repetition_penalty?: number;
  /** Empty when the file gives none. */
  readonly eos_token_id: readonly number[];
}

/**
 * Checks a parsed `generation_config.json`.
 *
 * @param json What `JSON.parse` made of the file.
 * @param file The file's path, for messages.
 * @param vocab_size Token ids must be below it.
 * @throws {CheckpointError} When a value is outside its range.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { parseGenerationConfig } from "./generation_config.ts";
 *
 * const json = { do_sample: true, temperature: 0.3, top_p: 0.95 };
 * const config = parseGenerationConfig(json, "generation_config.json", 4096);
 * assertEquals([config.temperature, config.top_k], [0.3, undefined]);
 * ```
 */
export function parseGenerationConfig(
  json: unknown,
  file: string,
  vocab_size: number,
): GenerationConfig {
  const fields = new Fields(json, file);
  const number = (name: string, min: number, max: number) =>
    fields.raw(name) === undefined
      ? undefined
      : fields.number(name, { min, max });
  const share = (name: string) => {
    if (fields.raw(name) === 0) fields.refuse(name, "a number in (0, 1]");
    return number(name, 0, 1);
  };
  return Object.freeze({
    do_sample: fields.raw("do_sample") === undefined
      ? undefined
      : fields.boolean("do_sample"),
    temperature: number("temperature", 0, 1e6),
    top_k: fields.raw("top_k") === undefined
      ? undefined
      : fields.integer("top_k", { min: 0, max: 2 ** 31 - 1 }),
    top_p: share("top_p"),
    min_p: number("min_p", 0, 1),
    typical_p: share("typical_p"),
    repetition_penalty: number("repetition_penalty", 1e-6, 1e6),
    eos_token_id: parseTokenIds(fields, "eos_token_id", vocab_size),
  });
}
