import {
  CancelledError,
  ControlWord,
  cudaWorks,
  type DeviceName,
  type KernelSetName,
  NativeDevice,
  NativeModel,
  newControl,
} from "../../ffi/mod.ts";

import {
  checkChoice,
  checkInteger,
  checkOptionsObject,
  checkSignal,
  outOfRange,
  wrongType,
} from "../arguments.ts";
import {
  CPU_LIMITS,
  CUDA_LIMITS,
  DECODE_ROWS,
  Engine,
} from "../generate/engine.ts";
import { CacheStore } from "../cache/store.ts";
import { resolveCheckpoint } from "../hub/resolve.ts";
import { GrammarCompiler } from "../grammar/compiler.ts";
import { Tokenizer } from "../text/tokenizer.ts";
import {
  bindWeights,
  checkpointSource,
  type WeightSource,
  type WeightsType,
} from "../weights/bind.ts";
import { type Checkpoint, openCheckpoint } from "../weights/checkpoint.ts";
import { fingerprint } from "../weights/fingerprint.ts";
import type { ModelConfig } from "./config.ts";
import type { GenerationConfig } from "./generation_config.ts";
import { recordModel } from "./layers.ts";
import { Model } from "./model.ts";

/** What a load is doing; bytes of the whole. */
export interface LoadProgress {
  /** What is being done now. */
  stage: "download" | "read" | "convert" | "upload" | "prepare";
  /** Bytes done. */
  loaded: number;
  /** Bytes of the whole load. */
  total: number;
}

/** Options of {@link loadModel}. */
export interface LoadOptions {
  /** "auto" (default): CUDA when it works, else the CPU; "cuda:1" is the second GPU. */
  device?: "auto" | DeviceName;
  /** "auto" (default): as stored; others are converted while loading. */
  weights?: WeightsType;
  /** CPU threads; default: as many as the process may use. */
  threads?: number;
  /**
   * "auto" (default): the best that the device has; or a lesser set ("generic": of CUDA). On an
   * H100 or H200 it is "sm90-persistent", one launch for a token's layers, where the model allows
   * (docs/cuda.md); by that name it is an error where the model does not.
   */
  kernels?: KernelSetName;
  /** Told how the load goes on. */
  onProgress?: (progress: LoadProgress) => void;
  /** Aborts the load. */
  signal?: AbortSignal;
  /** Bytes of all cache pages; default: half of the memory available, on CUDA 90 %. */
  cacheBytes?: number;
  /** The part of them that may keep prefixes of finished requests; default: all that is unused. */
  prefixCacheBytes?: number;
  /** Requests that share a step; default 64. */
  maxBatch?: number;
  /**
   * Default true: a request's bits do not depend on what runs beside it. false gives that up for
   * speed; there are no kernels yet that would be faster without.
   */
  batchInvariant?: boolean;
}

const DEFAULT_BATCH = 64;
const CPU_KERNELS: readonly string[] = ["reference", "avx2", "avx512", "amx"];
const CUDA_KERNELS: readonly string[] = ["generic", "sm90", "sm90-persistent"];

/** The device that "auto" stands for: where the kernels asked for run, else CUDA when it works. */
function chooseDevice(
  { device = "auto", kernels = "auto" }: LoadOptions,
): DeviceName {
  if (device !== "auto") return device;
  if (kernels !== "auto") return CPU_KERNELS.includes(kernels) ? "cpu" : "cuda";
  return cudaWorks() ? "cuda" : "cpu";
}

const VERB = "load";
const KNOWN: readonly (keyof LoadOptions)[] = [
  "device",
  "weights",
  "threads",
  "kernels",
  "onProgress",
  "signal",
  "cacheBytes",
  "prefixCacheBytes",
  "maxBatch",
  "batchInvariant",
];

function checkOptions(options: LoadOptions) {
  checkOptionsObject(VERB, options, KNOWN);
  const check = <Name extends keyof LoadOptions>(
    name: Name,
    right: (value: unknown) => void,
  ) => {
    if (options[name] !== undefined) right(options[name]);
  };
  const integer = (name: keyof LoadOptions, min: number, max: number) =>
    check(name, (value) => checkInteger(VERB, name, value, min, max));
  integer("threads", 1, 1024);
  integer("cacheBytes", 1, Number.MAX_SAFE_INTEGER);
  integer("prefixCacheBytes", 0, Number.MAX_SAFE_INTEGER);
  integer("maxBatch", 1, CPU_LIMITS.mixed);
  const choice = (name: keyof LoadOptions, allowed: readonly string[]) =>
    check(name, (value) => checkChoice(VERB, name, value, allowed));
  choice("weights", ["auto", "f32", "bf16", "fp8", "int8", "int4"]);
  choice("kernels", ["auto", ...CPU_KERNELS, ...CUDA_KERNELS]);
  check("device", (device) => {
    const right = '"auto", "cpu", "cuda" or "cuda:1"';
    if (typeof device !== "string") {
      throw wrongType(VERB, "device", device, right);
    }
    if (!/^(auto|cpu|cuda(:\d{1,4})?)$/.test(device)) {
      throw outOfRange(VERB, "device", device, right);
    }
  });
  check("onProgress", (value) => {
    if (typeof value !== "function") {
      throw wrongType(VERB, "onProgress", value, "a function");
    }
  });
  check("batchInvariant", (value) => {
    if (typeof value !== "boolean") {
      throw wrongType(VERB, "batchInvariant", value, "a boolean");
    }
  });
  checkSignal(VERB, options.signal);
}

/** The ids that end an output: the generation config's, else the config's. */
function eosIds(
  { eos_token_id }: ModelConfig,
  generation: GenerationConfig | undefined,
): readonly number[] {
  if (generation?.eos_token_id.length) return generation.eos_token_id;
  if (typeof eos_token_id === "number") return [eos_token_id];
  return eos_token_id ?? [];
}

function totalBytes(checkpoint: Checkpoint): number {
  return checkpoint.files.reduce((sum, file) => sum + file.bytes, 0);
}

/** Milliseconds that a load may keep timers waiting. */
const BUSY = 20;

/**
 * Lets timers run, at once and then now and then: calls of the library that end quickly follow one
 * another without a turn for them, and an abort may wait for its turn.
 */
function pauses(): () => Promise<void> {
  let last = -Infinity;
  return async () => {
    if (performance.now() - last < BUSY) return;
    await new Promise((resolve) => setTimeout(resolve, 0));
    last = performance.now();
  };
}

/** What {@link buildModel} needs beside options. */
export interface ModelParts {
  config: ModelConfig;
  checkpoint?: Checkpoint;
  source: (native: NativeModel) => WeightSource;
  tokenizer?: Tokenizer;
  /** Digest of config and weights. */
  fingerprint: () => Promise<string>;
  /** Bytes of all weights as stored, for progress. */
  bytes: number;
  /** Keep every value of a step, for tests. */
  keepAll?: boolean;
}

function once<T>(make: () => Promise<T>): () => Promise<T> {
  let made: Promise<T> | undefined;
  return () => made ??= make();
}

/** Device, weights, programs and engine, put together; used by loadModel, tests and benches. */
export async function buildModel(
  parts: ModelParts,
  options: LoadOptions,
): Promise<Model> {
  const { config } = parts;
  const generationConfig = parts.checkpoint?.generationConfig;
  const { onProgress, signal } = options;
  const device = new NativeDevice({
    device: chooseDevice(options),
    threads: options.threads,
    kernels: options.kernels,
  });
  const pause = pauses();
  const control = newControl();
  const abort = () => Atomics.store(control, ControlWord.cancel, 1);
  signal?.addEventListener("abort", abort);
  let native: NativeModel | undefined;
  try {
    native = new NativeModel(device);
    let loaded = 0;
    const weights = await bindWeights(native, config, parts.source(native), {
      weights: options.weights ?? "auto",
      control,
      async onBytes(bytes, converted) {
        loaded += bytes;
        const stage = converted ? "convert" : "read";
        onProgress?.({ stage, loaded, total: parts.bytes });
        await pause();
        signal?.throwIfAborted();
      },
    });
    const weightsType = weights.layers[0].output.dtype;
    const { bytes: total } = parts;
    const keepAll = parts.keepAll ?? false;
    const cuda = device.library.kind === "cuda";
    const limits = cuda ? CUDA_LIMITS : CPU_LIMITS;
    const decode = recordModel(config, weights, "absorbed");
    const mixed = recordModel(config, weights, "both", keepAll);
    const programs = {
      decode: native.addProgram(decode.program, DECODE_ROWS, limits.logits),
      mixed: native.addProgram(mixed.program, limits.mixed, limits.logits),
    };
    onProgress?.({ stage: "prepare", loaded: total, total });
    const free = device.info().memoryFree;
    const engine = new Engine({
      native,
      // With every value kept there is one program, so that tests know where to look.
      programs: keepAll ? { ...programs, decode: programs.mixed } : programs,
      vocab_size: config.vocab_size,
      maxBatch: options.maxBatch ?? DEFAULT_BATCH,
      limits,
    });
    const model = new Model({
      config,
      generationConfig,
      eosTokenIds: parts.tokenizer?.eosTokenIds ??
        eosIds(config, generationConfig),
      tokenizer: parts.tokenizer,
      grammars: parts.tokenizer && await GrammarCompiler.open(
        parts.tokenizer,
        config.vocab_size,
        parts.tokenizer.eosTokenIds,
      ),
      device,
      native,
      engine,
      programs,
      recorded: mixed,
      weightsType,
      caches: new CacheStore({
        config,
        native,
        weightsType,
        fingerprint: once(parts.fingerprint),
        prefixCacheBytes: options.prefixCacheBytes ?? Infinity,
        cacheBytes: options.cacheBytes ??
          Math.floor(free * (cuda ? 0.9 : 0.5)),
      }),
    });
    return model;
  } catch (error) {
    native?.[Symbol.dispose]();
    device[Symbol.dispose]();
    if (error instanceof CancelledError && signal?.aborted) throw signal.reason;
    throw error;
  } finally {
    signal?.removeEventListener("abort", abort);
  }
}

/**
 * Loads a checkpoint of the DeepSeek-V2 family: a folder, or a model of the Hugging Face hub
 * (`owner/name`, `owner/name@revision`: downloaded into the hub's cache), in the published layout with
 * `config.json`, `*.safetensors` (F32, BF16, F16, or FP8 with `weight_scale_inv`), and optionally
 * `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`.
 *
 * @throws CheckpointError naming file, tensor, expected and found; `Deno.errors.NotFound` and
 * `NotCapable`; OutOfMemoryError; RangeError and TypeError for options; the signal's reason
 *
 * @example
 * ```ts
 * import { loadModel } from "../../mod.ts";
 *
 * await using model = await loadModel(new URL("../../models/nano", import.meta.url));
 * console.log(await model.generate("Once upon a time", { maxTokens: 20 }).text());
 * ```
 */
export async function loadModel(
  path: string | URL,
  options: LoadOptions = {},
): Promise<Model> {
  if (typeof path !== "string" && !(path instanceof URL)) {
    throw wrongType(VERB, "path", path, "a string or a URL");
  }
  checkOptions(options);
  options.signal?.throwIfAborted();
  const { signal, onProgress } = options;
  const folder = await resolveCheckpoint(path, {
    signal,
    onProgress(loaded, total) {
      onProgress?.({ stage: "download", loaded, total });
    },
  });
  const checkpoint = await openCheckpoint(folder);
  const { config, generationConfig } = checkpoint;
  const eosTokenIds = eosIds(config, generationConfig);
  const tokenizer = await Tokenizer.open(checkpoint.path, {
    vocabSize: config.vocab_size,
    bosTokenId: config.bos_token_id ?? undefined,
    eosTokenIds: eosTokenIds.length > 0 ? eosTokenIds : undefined,
  });
  signal?.throwIfAborted();
  return await buildModel({
    config,
    checkpoint,
    tokenizer,
    fingerprint: () => fingerprint(checkpoint),
    source: (native) => checkpointSource(native, checkpoint),
    bytes: totalBytes(checkpoint),
  }, options);
}
