import { NativeError } from "../src/errors.ts";
import { ABI_VERSION } from "./enums.ts";
import { STRUCTS } from "./structs.ts";
import { SYMBOLS } from "./symbols.ts";

/**
 * The symbols of an opened library.
 * @internal
 */
export type Symbols = Deno.DynamicLibrary<typeof SYMBOLS>["symbols"];

/** A kernel library: for the CPU, or for CUDA GPUs. */
export type LibraryKind = "cpu" | "cuda";

/** An opened and checked kernel library. It is never closed: a call may be running on it. */
export interface Library {
  /**
   * The functions of csrc/include/moela.h.
   * @internal
   */
  readonly symbols: Symbols;
  /** What it runs on. */
  readonly kind: LibraryKind;
  /** Where it was opened. */
  readonly path: string;
  /** Hash of the sources that the library was built from. */
  readonly buildId: string;
}

const opened = new Map<string, Library>();

const SUFFIX = Deno.build.os === "darwin" ? "dylib" : "so";
const FILES = {
  cpu: {
    file: `libmoela.${SUFFIX}`,
    task: "deno task build",
    variable: "MOELA_LIBRARY",
  },
  cuda: {
    file: `libmoela_cuda.${SUFFIX}`,
    task: "deno task build:cuda",
    variable: "MOELA_CUDA_LIBRARY",
  },
};

/**
 * `MOELA_LIBRARY` and `MOELA_CUDA_LIBRARY` name other files than the built ones, when the process may
 * read those variables.
 */
function pathOf(kind: LibraryKind): string {
  const { file, variable } = FILES[kind];
  const permission = { name: "env", variable } as const;
  const granted = Deno.permissions.querySync(permission).state === "granted";
  return (granted ? Deno.env.get(variable) : undefined) ??
    decodeURI(new URL(`../build/${file}`, import.meta.url).pathname);
}

function readText(
  write: (out: Uint8Array<ArrayBuffer>, size: bigint) => bigint | number,
): string {
  const bytes = new Uint8Array(Number(write(new Uint8Array(1), 1n)) + 1);
  write(bytes, BigInt(bytes.length));
  return new TextDecoder().decode(bytes.subarray(0, -1));
}

/**
 * What differs between the structs here and the library's, or undefined when nothing does.
 *
 * @param layout the JSON of `moela_layout`
 */
export function layoutMismatch(layout: string): string | undefined {
  type Layout = Record<
    string,
    { size: number; fields: Record<string, [number, number]> }
  >;
  const found = JSON.parse(layout) as Layout;
  for (const struct of STRUCTS) {
    const theirs = found[struct.name];
    if (!theirs) return `${struct.name} is missing`;
    if (theirs.size !== struct.size) {
      return `${struct.name} has ${theirs.size} bytes, expected ${struct.size}`;
    }
    for (const { name, offset } of struct.places) {
      const at = theirs.fields[name]?.[0];
      if (at !== offset) {
        return `${struct.name}.${name} lies at ${at}, expected ${offset}`;
      }
    }
    const names = Object.keys(theirs.fields);
    if (names.length !== struct.places.length) {
      return `${struct.name} has fields ${names}`;
    }
  }
  return undefined;
}

function check(symbols: Symbols, path: string, task: string) {
  const version = symbols.moela_abi_version();
  if (version !== ABI_VERSION) {
    throw new NativeError(
      `${path} has ABI version ${version}, and ${ABI_VERSION} is needed: run '${task}'`,
    );
  }
  const mismatch = layoutMismatch(
    readText((out, size) => symbols.moela_layout(out, size)),
  );
  if (mismatch) {
    throw new NativeError(
      `${path} has other structs (${mismatch}): run '${task}'`,
    );
  }
}

/**
 * Opens the kernel library once a process.
 *
 * @throws NativeError when it is missing (with the path tried and the task that builds it) or was
 * built from other sources; `Deno.errors.NotCapable` without permission for it
 */
export function openLibrary(kind: LibraryKind = "cpu"): Library {
  const { task } = FILES[kind];
  const path = pathOf(kind);
  const known = opened.get(path);
  if (known) return known;
  let symbols: Symbols;
  try {
    symbols = Deno.dlopen(path, SYMBOLS).symbols;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    const reason = error instanceof Error ? error.message : String(error);
    throw new NativeError(
      `Cannot open the kernel library at ${path}: run '${task}' to build it (${reason})`,
    );
  }
  check(symbols, path, task);
  const buildId = readText((out, size) => symbols.moela_build_id(out, size));
  const library = { symbols, kind, path, buildId };
  opened.set(path, library);
  return library;
}

/**
 * Whether the library of a kind is there and may be opened. Asks for no permission: without those
 * for its file it is taken for absent.
 */
export function libraryExists(kind: LibraryKind): boolean {
  const path = pathOf(kind);
  const granted = (["read", "ffi"] as const).every((name) =>
    Deno.permissions.querySync({ name, path }).state === "granted"
  );
  if (!granted) return false;
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}
