/**
 * Which model a benchmark measures: a checkpoint, or one of a published shape with weights made in
 * memory.
 *
 * @module
 */
import { parseArgs } from "node:util";
import type { WeightDType } from "../ffi/mod.ts";
import { type CacheType, loadModel, type Model } from "../mod.ts";
import { CACHE_TYPES } from "../src/cache/type.ts";
import { parseConfig } from "../src/model/config.ts";
import { buildModel } from "../src/model/load.ts";
import { generatedSource } from "../src/weights/bind.ts";
import { SHAPE_NAMES, shapeConfig } from "./shapes.ts";

/** The options that all benchmarks have, for their help. */
export const SOURCE_USAGE = `  --checkpoint DIR  a checkpoint (models/nano)
  --generated       random weights in memory, of the shape
  --shape NAME      ${SHAPE_NAMES.join(", ")}; of a checkpoint: its label
  --layers N        instead of the shape's own number
  --weights TYPE    f32, bf16, fp8, int8 or int4 (as stored; generated: bf16)
  --cache TYPE      f32, bf16, fp8, int8 or int6 (as the weights' type has it)
  --prefill LIST    tokens (128,512,4096); 0: none
  --decode LIST     tokens held before (0,4096,16384)
  --batch LIST      requests that decode at once (1,8)
  --device NAME     cpu, cuda or auto: cuda where it works (auto)
  --threads N       (all)
  --kernels SET     (the best)
  --runs N          of which the median counts (5)
  --name NAME       of the CSV file`;

/** Of generated weights. */
const SEED = 1;
const NANO = new URL("../models/nano", import.meta.url);

/** A positive integer from the command line. */
export function integer(name: string, text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 1) return value;
  throw new RangeError(
    `--${name} is "${text}", and must be a positive integer`,
  );
}

export type BenchDevice = "cpu" | "cuda" | "auto";
/** What `--device` may be. */
export const BENCH_DEVICES: readonly BenchDevice[] = ["cpu", "cuda", "auto"];
const KERNELS = [
  "reference",
  "avx2",
  "avx512",
  "amx",
  "generic",
  "sm90",
  "sm90-persistent",
] as const;

/** What the command line says. */
export interface SourceOptions {
  checkpoint?: string;
  generated: boolean;
  shape?: string;
  layers?: number;
  weights?: WeightDType;
  cache?: CacheType;
  prefill: number[];
  decode: number[];
  batch: number[];
  device?: BenchDevice;
  threads?: number;
  kernels?: typeof KERNELS[number];
  runs: number;
  name?: string;
}

/** Reads the options; undefined when help was asked for. */
export function parseSource(args: string[]): SourceOptions | undefined {
  const { values } = parseArgs({
    args,
    options: {
      checkpoint: { type: "string" },
      generated: { type: "boolean", default: false },
      shape: { type: "string" },
      layers: { type: "string" },
      weights: { type: "string" },
      cache: { type: "string" },
      prefill: { type: "string", default: "128,512,4096" },
      decode: { type: "string", default: "0,4096,16384" },
      batch: { type: "string", default: "1,8" },
      device: { type: "string" },
      threads: { type: "string" },
      kernels: { type: "string" },
      runs: { type: "string", default: "5" },
      name: { type: "string" },
      help: { type: "boolean" },
    },
  });
  if (values.help) return undefined;
  const { checkpoint, generated, shape, name } = values;
  const number = (option: "layers" | "threads" | "runs") => {
    const text = values[option];
    return text === undefined ? undefined : integer(option, text);
  };
  const list = (option: "prefill" | "decode" | "batch") =>
    values[option].split(",").map((text) =>
      text === "0" ? 0 : integer(option, text)
    );
  const among = <T extends string>(
    option: "weights" | "cache" | "device" | "kernels",
    allowed: readonly T[],
  ): T | undefined => {
    const text = values[option];
    const found = allowed.find((value) => value === text);
    if (text === undefined || found) return found;
    throw new RangeError(
      `--${option} is "${text}", and must be one of ${allowed.join(", ")}`,
    );
  };
  if (generated && checkpoint !== undefined) {
    throw new TypeError("--generated and --checkpoint exclude each other");
  }
  if (!generated && values.layers !== undefined) {
    throw new TypeError("--layers needs --generated: a checkpoint has its own");
  }
  if (!generated && checkpoint === undefined && shape !== undefined) {
    throw new TypeError("--shape needs --generated, or --checkpoint DIR");
  }
  if (name !== undefined && !/^[\w.-]+$/.test(name)) {
    throw new RangeError(`--name is "${name}", and must be a plain file name`);
  }
  return {
    checkpoint,
    generated,
    shape,
    layers: number("layers"),
    weights: among("weights", ["f32", "bf16", "fp8", "int8", "int4"]),
    cache: among("cache", CACHE_TYPES),
    prefill: list("prefill").filter((n) => n > 0),
    decode: list("decode"),
    batch: list("batch").filter((n) => n > 0),
    device: among("device", BENCH_DEVICES),
    threads: number("threads"),
    kernels: among("kernels", KERNELS),
    runs: number("runs") ?? 5,
    name,
  };
}

/** Loads or makes the model; `shape` is its label in the results. */
export async function openModel(
  options: SourceOptions,
): Promise<{ model: Model; shape: string }> {
  const { checkpoint, generated, weights, device, threads, kernels } = options;
  if (!generated) {
    const model = await loadModel(checkpoint ?? NANO, {
      weights,
      device,
      threads,
      kernels,
    });
    const shape = options.shape ??
      (checkpoint ?? "nano").replace(/\/+$/, "").split("/").at(-1) ?? "";
    return { model, shape };
  }
  const shape = options.shape ?? "v2-lite";
  const config = parseConfig(shapeConfig(shape, options.layers), shape);
  const stored = weights === "f32" ? "f32" : "bf16";
  const model = await buildModel({
    config,
    source: () => generatedSource(config, SEED, stored),
    fingerprint: () =>
      Promise.resolve(JSON.stringify([config, SEED, stored, weights])),
    bytes: 1,
  }, { weights, device, threads, kernels });
  return { model, shape };
}

/** Ids that look like no text: the same for the same seed. */
export function randomTokens(n: number, vocab_size: number, seed: number) {
  let state = BigInt(seed) * 2n + 1n;
  return Array.from({ length: n }, () => {
    state = BigInt.asUintN(
      64,
      state * 6364136223846793005n + 1442695040888963407n,
    );
    return Number((state >> 33n) % BigInt(vocab_size));
  });
}
