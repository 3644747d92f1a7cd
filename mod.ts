/**
 * moela runs DeepSeek-V2 and its family on its own kernel library.
 *
 * @example
 * ```ts
 * import { loadModel } from "./mod.ts";
 *
 * await using model = await loadModel(new URL("./models/nano", import.meta.url));
 * for await (const chunk of model.generate("Once upon a time", { maxTokens: 30 })) {
 *   await Deno.stdout.write(new TextEncoder().encode(chunk.text));
 * }
 * ```
 *
 * @module
 */
export { Cache } from "./src/cache/cache.ts";
export type { CacheType } from "./src/cache/type.ts";
export type { CacheOptions } from "./src/cache/store.ts";
export {
  CacheBusyError,
  CacheFileError,
  CheckpointError,
  DisposedError,
  NativeError,
  OutOfMemoryError,
} from "./src/errors.ts";
export type {
  Chunk,
  FinishReason,
  Generation,
  GenerationResult,
  TokenLogprob,
  TokenLogprobs,
} from "./src/generate/generation.ts";
export type { Grammar } from "./src/grammar/grammar.ts";
export type { GenerateOptions } from "./src/generate/options.ts";
export type {
  Fp8Quantization,
  GroupQuantization,
  ModelConfig,
  ModelType,
  YarnScaling,
} from "./src/model/config.ts";
export {
  loadModel,
  type LoadOptions,
  type LoadProgress,
} from "./src/model/load.ts";
export type { ForwardOptions } from "./src/model/forward_options.ts";
export { type MemoryUse, Model } from "./src/model/model.ts";
export { createHandler, type Handler } from "./src/server/handler.ts";
export type { LogEntry } from "./src/server/log.ts";
export type { ServerOptions } from "./src/server/options.ts";
export type { Message } from "./src/text/message.ts";
export {
  type ChatTemplateOptions,
  type DecodeOptions,
  type EncodeOptions,
  Tokenizer,
} from "./src/text/tokenizer.ts";
export type { WeightsType } from "./src/weights/bind.ts";
