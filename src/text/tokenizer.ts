/**
 * Text to ids and back.
 *
 * @module
 */

import { checkOptionsObject, describe, wrongType } from "../arguments.ts";
import { CheckpointError } from "../errors.ts";
import { AddedTokens, type Segment } from "./added_tokens.ts";
import { ByteTable, decodeUtf8 } from "./byte_table.ts";
import { ChatTemplate } from "./chat.ts";
import { checkMessages, type Message } from "./message.ts";
import { TextStream } from "./stream.ts";
import { readTokenizerConfig, readTokenizerJson } from "./tokenizer_files.ts";
import { WasmEncoder } from "./wasm.ts";

/** What `Tokenizer.open` must know of the model. */
export interface TokenizerOptions {
  /** `vocab_size` of the config. */
  vocabSize: number;
  /** `bos_token_id` of the config, for when the tokenizer names none. */
  bosTokenId?: number;
  /** `eos_token_id` of the generation config; default: the tokenizer's own. */
  eosTokenIds?: readonly number[];
}

/** Options of {@linkcode Tokenizer.encode}. */
export interface EncodeOptions {
  /** For text: put the BOS before it, where the tokenizer wants one. Default true. */
  addSpecialTokens?: boolean;
  /** For text: parts that look like an added token become it. Default false. */
  allowSpecial?: boolean;
  /** For messages: end with the beginning of an answer. Default true. */
  addGenerationPrompt?: boolean;
}

/** Options of {@linkcode Tokenizer.decode}. */
export interface DecodeOptions {
  /** Leave out BOS, EOS and other special tokens. Default false. */
  skipSpecialTokens?: boolean;
}

/** Options of {@linkcode Tokenizer.applyChatTemplate}. */
export interface ChatTemplateOptions {
  /** End with the beginning of an answer. Default false. */
  addGenerationPrompt?: boolean;
}

interface Parts {
  readonly encoder: WasmEncoder;
  readonly table: ByteTable;
  readonly added: AddedTokens;
  readonly special: ReadonlySet<number>;
  readonly prefix: readonly number[];
  readonly bosTokenId: number | undefined;
  readonly eosTokenIds: readonly number[];
  readonly template: ChatTemplate | undefined;
}

/** Checks one boolean option; absent means `fallback`. */
function flag(
  options: unknown,
  name: string,
  fallback: boolean,
  verb: string,
): boolean {
  checkOptionsObject(verb, options);
  const value = (options as Record<string, unknown>)[name];
  if (value === undefined) return fallback;
  if (typeof value === "boolean") return value;
  throw wrongType(verb, name, value, "a boolean");
}

/**
 * The tokenizer of a model.
 *
 * @example
 * ```ts ignore
 * const tokenizer = await Tokenizer.open("models/nano", { vocabSize: 4096 });
 * const ids = tokenizer!.encode("Once upon a time");
 * tokenizer!.decode(ids, { skipSpecialTokens: true }); // "Once upon a time"
 * ```
 */
export class Tokenizer {
  /** The id that begins a text, when there is one. */
  readonly bosTokenId: number | undefined;
  /** The ids that end a text. */
  readonly eosTokenIds: readonly number[];
  /**
   * The bytes of every token.
   * @ignore
   */
  readonly table: ByteTable;
  /**
   * The ids of `added_tokens`, special or not: they stand for no plain text.
   * @ignore
   */
  readonly addedTokenIds: ReadonlySet<number>;
  readonly #parts: Parts;

  private constructor(parts: Parts) {
    this.bosTokenId = parts.bosTokenId;
    this.eosTokenIds = parts.eosTokenIds;
    this.table = parts.table;
    this.addedTokenIds = new Set(
      [...parts.added.byContent.values()].map(({ id }) => id),
    );
    this.#parts = parts;
  }

  /**
   * Opens the tokenizer of a checkpoint.
   *
   * @param folder The checkpoint's folder, in the Hugging Face layout.
   * @param options What the configs of the model say.
   * @returns `undefined` when the folder has no `tokenizer.json`.
   * @throws {CheckpointError} When a file is damaged, or disagrees with the
   * model's vocabulary.
   * @throws {NativeError} When the tokenizers library has not been built.
   */
  static async open(
    folder: string | URL,
    options: TokenizerOptions,
  ): Promise<Tokenizer | undefined> {
    try {
      return await Tokenizer.#read(folder, options);
    } catch (cause) {
      if (!(cause instanceof CheckpointError)) throw cause;
      // Its message begins with the file's name.
      const place = `${folder}`.replace(/\/$/, "");
      throw new CheckpointError(`${place}/${cause.message}`, { cause });
    }
  }

  static async #read(
    folder: string | URL,
    options: TokenizerOptions,
  ): Promise<Tokenizer | undefined> {
    const { vocabSize } = options;
    const json = await readTokenizerJson(folder, vocabSize);
    if (json === undefined) return undefined;
    const [config, encoder] = await Promise.all([
      readTokenizerConfig(folder),
      WasmEncoder.open(json.plain, "tokenizer.json"),
    ]);

    const added = new AddedTokens(json.added);
    const idOf = (name: string): number | undefined => {
      const token = config.specialTokens[name];
      if (token === undefined) return undefined;
      const id = added.byContent.get(token)?.id ?? json.tokens.indexOf(token);
      if (id >= 0) return id;
      throw new CheckpointError(
        `tokenizer_config.json: ${name} is ${describe(token)}, and must be a ` +
          "token of tokenizer.json",
      );
    };
    const bosTokenId = idOf("bos_token") ?? options.bosTokenId;
    const eos = idOf("eos_token");
    const eosTokenIds = options.eosTokenIds ?? (eos === undefined ? [] : [eos]);
    const special = new Set(eosTokenIds);
    if (bosTokenId !== undefined) special.add(bosTokenId);
    for (const token of json.added) if (token.special) special.add(token.id);

    const { addBosToken, chat } = config;
    if (addBosToken && bosTokenId === undefined) {
      throw new CheckpointError(
        "tokenizer_config.json: add_bos_token is true, and must not be: " +
          "no file names a bos_token",
      );
    }
    const prefix = addBosToken === undefined
      ? json.prefix
      : addBosToken
      ? [bosTokenId!]
      : [];
    const template = chat && new ChatTemplate({
      ...chat,
      specialTokens: config.specialTokens,
      added,
      isSpecial: (id) => special.has(id),
    });
    return new Tokenizer({
      encoder,
      table: new ByteTable(json.tokens),
      added,
      special,
      prefix,
      bosTokenId,
      eosTokenIds: [...eosTokenIds],
      template,
    });
  }

  /**
   * The ids of a text or of a conversation: exactly those that `generate` would
   * use for it.
   *
   * A text is plain: what looks like a control token in it stays text, unless
   * `allowSpecial` is set. Messages go through the chat template, whose own
   * text forms control tokens, while what user, system and tool messages
   * contain never does. A lone surrogate becomes U+FFFD.
   *
   * @throws {TypeError} For a wrong type, an unknown role, or messages without
   * a chat template.
   * @throws {RangeError} For an empty conversation, or one that the template
   * refuses.
   */
  encode(
    input: string | readonly Message[],
    options: EncodeOptions = {},
  ): number[] {
    const addSpecialTokens = flag(options, "addSpecialTokens", true, "encode");
    const allowSpecial = flag(options, "allowSpecial", false, "encode");
    const prompt = flag(options, "addGenerationPrompt", true, "encode");
    if (typeof input !== "string") {
      if (!Array.isArray(input)) {
        const right = "a string or an array of messages";
        throw wrongType("encode", "input", input, right);
      }
      checkMessages(input, "encode");
      return this.#ids(this.#template("encode").segments(input, prompt));
    }
    const text = input.toWellFormed();
    const ids = this.#ids(
      allowSpecial ? this.#parts.added.split(text) : [text],
    );
    const { prefix } = this.#parts;
    const has = prefix.every((id, i) => ids[i] === id);
    return addSpecialTokens && !has ? [...prefix, ...ids] : ids;
  }

  #ids(segments: readonly Segment[]): number[] {
    const ids: number[] = [];
    for (const segment of segments) {
      if (typeof segment === "number") ids.push(segment);
      else if (segment !== "") {
        for (const id of this.#parts.encoder.encode(segment)) ids.push(id);
      }
    }
    return ids;
  }

  #template(verb: string): ChatTemplate {
    const { template } = this.#parts;
    if (template !== undefined) return template;
    throw new TypeError(
      `Cannot ${verb} messages: the checkpoint has no chat template ` +
        "(chat_template in tokenizer_config.json, or chat_template.jinja)",
    );
  }

  #checkIds(tokens: unknown, verb: string): ArrayLike<number> {
    if (!Array.isArray(tokens) && !ArrayBuffer.isView(tokens)) {
      throw wrongType(verb, "tokens", tokens, "an array of ids");
    }
    const ids = tokens as ArrayLike<unknown>;
    const { size } = this.table;
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i];
      if (typeof id !== "number") {
        throw wrongType(verb, `tokens[${i}]`, id, "an id");
      }
      if (!(Number.isInteger(id) && id >= 0 && id < size)) {
        throw new RangeError(
          `Cannot ${verb}: tokens[${i}] is ${id}, and must be an id of the ` +
            `vocabulary, an integer in [0, ${size})`,
        );
      }
    }
    return ids as ArrayLike<number>;
  }

  /**
   * The text of `tokens`. Bytes that are no whole character become U+FFFD.
   *
   * @throws {TypeError} When `tokens` is no array of numbers.
   * @throws {RangeError} For an id outside the vocabulary.
   */
  decode(tokens: readonly number[], options: DecodeOptions = {}): string {
    const skip = flag(options, "skipSpecialTokens", false, "decode");
    const ids = this.#checkIds(tokens, "decode");
    const { special } = this.#parts;
    return decodeUtf8(this.table.join(ids, (id) => !(skip && special.has(id))));
  }

  /**
   * For each token the whole characters that it completes, so that
   * `pieces(tokens).join("")` equals `decode(tokens)`.
   *
   * @throws {TypeError | RangeError} As `decode` does.
   */
  pieces(tokens: readonly number[]): string[] {
    const ids = this.#checkIds(tokens, "split into pieces");
    const stream = new TextStream(this);
    const pieces = Array.from(ids, (id) => stream.push(id));
    if (pieces.length > 0) pieces[pieces.length - 1] += stream.flush();
    return pieces;
  }

  /**
   * The conversation as the chat template writes it: for looking at, not an
   * input for `generate`, because what messages contain can no longer be told
   * from the template's own control tokens.
   *
   * @throws {TypeError | RangeError} As `encode` does for messages.
   */
  applyChatTemplate(
    messages: readonly Message[],
    options: ChatTemplateOptions = {},
  ): string {
    const verb = "apply the chat template";
    const prompt = flag(options, "addGenerationPrompt", false, verb);
    checkMessages(messages, verb);
    return this.#template("render").render(messages, prompt);
  }

  /**
   * The message to push onto a conversation for a generated text: its content
   * is the text in the form whose rendering by the chat template continues the
   * tokens that a cache holds.
   *
   * @param text What was generated.
   * @param messages The conversation that was answered, when there was one.
   * @ignore
   */
  answerMessage(text: string, messages?: readonly Message[]): Message {
    const { template } = this.#parts;
    return template?.answer(text, messages) ??
      { role: "assistant", content: text };
  }

  /**
   * The bytes of one token, a copy.
   *
   * @throws {RangeError} For an id outside the vocabulary.
   */
  bytes(id: number): Uint8Array {
    this.#checkIds([id], "give the bytes");
    return this.table.bytes(id).slice();
  }

  /** Whether `skipSpecialTokens` leaves this token out. */
  isSpecial(id: number): boolean {
    return this.#parts.special.has(id);
  }
}
