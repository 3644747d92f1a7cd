/**
 * Reads and checks `tokenizer.json`, `tokenizer_config.json` and
 * `chat_template.jinja`.
 *
 * @module
 */

import { describe } from "../arguments.ts";
import { CheckpointError } from "../errors.ts";
import type { AddedToken } from "./added_tokens.ts";

/** What `tokenizer.json` says. */
export interface TokenizerJson {
  /** Every id's token; the vocabulary's, and the added ones over it. */
  readonly tokens: readonly (string | undefined)[];
  /** `added_tokens`. */
  readonly added: readonly AddedToken[];
  /** The ids that the post-processor puts before a text. */
  readonly prefix: readonly number[];
  /** The file without its added tokens: it encodes plain text. */
  readonly plain: ArrayBuffer;
}

/** What `tokenizer_config.json` and `chat_template.jinja` say. */
export interface TokenizerConfig {
  /** Whether a text gets a BOS; `undefined` leaves it to `tokenizer.json`. */
  readonly addBosToken: boolean | undefined;
  /** `bos_token`, `eos_token`, … as strings. */
  readonly specialTokens: Readonly<Record<string, string>>;
  /** The chat template and the file that it is in. */
  readonly chat:
    | { readonly template: string; readonly file: string }
    | undefined;
}

type Json = Record<string, unknown>;

/** More than ten times the largest vocabulary in use. */
const MAX_BYTES = 2 ** 28;

/** A file of a folder. */
function within(folder: string | URL, name: string): string | URL {
  if (typeof folder === "string") return `${folder}/${name}`;
  return new URL(name, folder.href.endsWith("/") ? folder : `${folder.href}/`);
}

/** A file's text, `undefined` when it is not there. */
async function readText(path: string | URL, name: string) {
  try {
    const { size } = await Deno.stat(path);
    if (size > MAX_BYTES) {
      throw new CheckpointError(
        `${name} has ${size} bytes, and must have at most ${MAX_BYTES}`,
      );
    }
    return await Deno.readTextFile(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function parse(text: string, name: string): Json {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new CheckpointError(`${name} is not valid JSON: ${why}`, {
      cause: error,
    });
  }
  if (isObject(value)) return value;
  throw new CheckpointError(
    `${name} holds ${describe(value)}, and must hold an object`,
  );
}

function expect(right: boolean, name: string, value: unknown, wanted: string) {
  if (right) return;
  throw new CheckpointError(
    `tokenizer.json: ${name} is ${describe(value)}, and must be ${wanted}`,
  );
}

function checkId(id: unknown, name: string, vocabSize: number): number {
  expect(
    Number.isInteger(id) && Number(id) >= 0,
    name,
    id,
    "an integer of at least 0",
  );
  if (Number(id) >= vocabSize) {
    throw new CheckpointError(
      `tokenizer.json: ${name} is ${id}, and must be below the vocab_size ` +
        `${vocabSize} of config.json`,
    );
  }
  return Number(id);
}

function parseAdded(value: unknown, vocabSize: number): AddedToken[] {
  expect(Array.isArray(value), "added_tokens", value, "an array");
  const seen = new Set<string>();
  return (value as unknown[]).map((entry, i) => {
    const name = `added_tokens[${i}]`;
    expect(isObject(entry), name, entry, "an object");
    const fields = entry as Json;
    const { content } = fields;
    expect(
      typeof content === "string" && content !== "" &&
        content.isWellFormed() && !seen.has(content),
      `${name}.content`,
      content,
      "a string of its own, not empty",
    );
    seen.add(content as string);
    const flag = (key: string): boolean => {
      const set = fields[key] ?? false;
      expect(typeof set === "boolean", `${name}.${key}`, set, "a boolean");
      return set as boolean;
    };
    return {
      id: checkId(fields.id, `${name}.id`, vocabSize),
      content: content as string,
      special: flag("special"),
      normalized: flag("normalized"),
      lstrip: flag("lstrip"),
      rstrip: flag("rstrip"),
      single_word: flag("single_word"),
    };
  });
}

/** The tokens by id; no id may have two. */
function parseTokens(
  vocab: Json,
  added: readonly AddedToken[],
  vocabSize: number,
): (string | undefined)[] {
  const tokens = new Array<string | undefined>(vocabSize).fill(undefined);
  const put = (token: string, id: number, name: string) => {
    const other = tokens[id];
    if (other !== undefined && other !== token) {
      throw new CheckpointError(
        `tokenizer.json: ${name} gives id ${id} to ${describe(token)}, and ` +
          `must not: it belongs to ${describe(other)}`,
      );
    }
    tokens[id] = token;
  };
  for (const token in vocab) {
    const id = vocab[token];
    if (!(Number.isInteger(id) && Number(id) >= 0 && Number(id) < vocabSize)) {
      checkId(id, `model.vocab[${describe(token)}]`, vocabSize);
    }
    put(token, id as number, "model.vocab");
  }
  for (const { id, content } of added) put(content, id, "added_tokens");
  return tokens;
}

/** The processors of a post-processor, a Sequence taken apart. */
function processors(value: unknown): Json[] {
  if (!isObject(value)) return [];
  if (value.type !== "Sequence") return [value];
  const inner = Array.isArray(value.processors) ? value.processors : [];
  return inner.flatMap(processors);
}

/** The ids that TemplateProcessing puts before a single text. */
function parsePrefix(value: unknown, vocabSize: number): number[] {
  const prefix: number[] = [];
  for (const each of processors(value)) {
    if (each.type !== "TemplateProcessing") continue;
    const name = "post_processor.single";
    expect(Array.isArray(each.single), name, each.single, "an array");
    for (const piece of each.single as unknown[]) {
      if (!isObject(piece) || !isObject(piece.SpecialToken)) break;
      const special = String(piece.SpecialToken.id);
      const entry = isObject(each.special_tokens)
        ? each.special_tokens[special]
        : undefined;
      const ids = isObject(entry) ? entry.ids : undefined;
      const where = `post_processor.special_tokens[${describe(special)}].ids`;
      expect(Array.isArray(ids), where, ids, "an array");
      for (const id of ids as unknown[]) {
        prefix.push(checkId(id, where, vocabSize));
      }
    }
  }
  return prefix;
}

/** Only what the byte table and the cutting by added tokens reproduce. */
function checkKind(json: Json): void {
  const { decoder, normalizer } = json;
  const decoding = isObject(decoder) ? decoder.type : decoder;
  expect(decoding === "ByteLevel", "decoder.type", decoding, '"ByteLevel"');
  const nothing = normalizer === null || normalizer === undefined ||
    (isObject(normalizer) && (normalizer.type === "NFC" ||
      (normalizer.type === "Sequence" &&
        Array.isArray(normalizer.normalizers) &&
        normalizer.normalizers.length === 0)));
  const kind = isObject(normalizer) ? normalizer.type : normalizer;
  expect(nothing, "normalizer", kind, 'null, an empty Sequence or "NFC"');
}

/**
 * Reads `tokenizer.json`.
 *
 * @param folder The checkpoint's folder.
 * @param vocabSize `vocab_size` of the config.
 * @returns `undefined` when there is no such file.
 * @throws {CheckpointError} When it is damaged, of a kind that is not
 * supported, or has ids outside the vocabulary.
 */
export async function readTokenizerJson(
  folder: string | URL,
  vocabSize: number,
): Promise<TokenizerJson | undefined> {
  const name = "tokenizer.json";
  const text = await readText(within(folder, name), name);
  if (text === undefined) return undefined;
  const json = parse(text, name);
  const { model } = json;
  expect(isObject(model), "model", model, "an object");
  const { type, vocab } = model as Json;
  expect(type === "BPE", "model.type", type, '"BPE"');
  expect(isObject(vocab), "model.vocab", vocab, "an object");
  checkKind(json);
  const added = parseAdded(json.added_tokens ?? [], vocabSize);
  return {
    tokens: parseTokens(vocab as Json, added, vocabSize),
    added,
    prefix: parsePrefix(json.post_processor, vocabSize),
    plain: new TextEncoder()
      .encode(JSON.stringify({ ...json, added_tokens: [] })).buffer,
  };
}

/** `chat_template` as a string; of a list, the template named "default". */
function parseTemplate(value: unknown): string | undefined {
  if (typeof value === "string") return value;
  if (value === undefined || value === null) return undefined;
  const found = Array.isArray(value)
    ? value.find((each) => isObject(each) && each.name === "default")
    : undefined;
  if (value instanceof Array && found === undefined) return undefined;
  const template = isObject(found) ? found.template : value;
  if (typeof template === "string") return template;
  throw new CheckpointError(
    `tokenizer_config.json: chat_template is ${describe(template)}, and must ` +
      "be a string or a list of { name, template }",
  );
}

/**
 * Reads `tokenizer_config.json`, and `chat_template.jinja`, which goes before
 * the config's `chat_template`. Both may be missing.
 *
 * @throws {CheckpointError} When a file is damaged.
 */
export async function readTokenizerConfig(
  folder: string | URL,
): Promise<TokenizerConfig> {
  const name = "tokenizer_config.json";
  const jinja = "chat_template.jinja";
  const [text, own] = await Promise.all([
    readText(within(folder, name), name),
    readText(within(folder, jinja), jinja),
  ]);
  const json = text === undefined ? {} : parse(text, name);
  const addBos = json.add_bos_token ?? undefined;
  if (addBos !== undefined && typeof addBos !== "boolean") {
    throw new CheckpointError(
      `${name}: add_bos_token is ${describe(addBos)}, and must be a boolean`,
    );
  }
  const specialTokens: Record<string, string> = {};
  for (const [key, value] of Object.entries(json)) {
    if (!key.endsWith("_token")) continue;
    const content = isObject(value) ? value.content : value;
    if (typeof content === "string") specialTokens[key] = content;
  }
  const template = own ?? parseTemplate(json.chat_template);
  return {
    addBosToken: addBos,
    specialTokens,
    chat: template === undefined
      ? undefined
      : { template, file: own === undefined ? name : jinja },
  };
}
