import { DisposedError, NativeError } from "../src/errors.ts";
import { KernelSet, type KernelSetName } from "./enums.ts";
import {
  type Library,
  libraryExists,
  type LibraryKind,
  openLibrary,
} from "./library.ts";
import { ErrorBuffer } from "./status.ts";
import { DeviceInfo, DeviceOptions } from "./structs.ts";

/** A device by name: the CPU, or a CUDA GPU by its number (0 when absent). */
export type DeviceName = "cpu" | "cuda" | `cuda:${number}`;

/** Options of {@link NativeDevice}. */
export interface NativeDeviceOptions {
  /** Default: the one that `kernels` belong to, else the CPU. */
  device?: DeviceName;
  /** Threads of the host, the calling one included; default: as many as the process may use. */
  threads?: number;
  /** Which kernels; default: the best that the device has. */
  kernels?: KernelSetName;
}

/** What a device is and has. */
export interface NativeDeviceInfo {
  /** Processor or GPU. */
  name: string;
  /** Kernels in use. */
  kernels: KernelSetName;
  /** Kernels that would work here. */
  available: KernelSetName[];
  /** Threads in use, the calling one included. */
  threads: number;
  /** Bytes of the machine or the GPU. */
  memoryTotal: number;
  /** Bytes available; on the CPU the smaller of the system's and what the cgroup leaves. */
  memoryFree: number;
}

const kernelNames = Object.keys(KernelSet) as KernelSetName[];
const cudaKernels: readonly (KernelSetName | undefined)[] = [
  "generic",
  "sm90",
  "sm90-persistent",
];

/** Which library runs a device, and its number there. */
function parseDevice(
  { device, kernels }: NativeDeviceOptions,
): { kind: LibraryKind; index: number } {
  if (device === undefined) {
    return { kind: cudaKernels.includes(kernels) ? "cuda" : "cpu", index: 0 };
  }
  const [, kind, index] = /^(cpu|cuda)(?::(\d{1,4}))?$/.exec(device) ?? [];
  if (kind === "cuda") return { kind, index: Number(index ?? 0) };
  if (kind === "cpu" && index === undefined) return { kind, index: 0 };
  throw new RangeError(
    `Cannot open the device: "${device}" is none; "cpu", "cuda" and "cuda:1" are`,
  );
}

// A device that is dropped without dispose() takes its threads with it.
const finalizer = new FinalizationRegistry<() => void>((destroy) => destroy());

/**
 * A device of a kernel library: on the CPU a pool of threads and a set of kernels, or a GPU.
 *
 * @example
 * ```ts
 * import { NativeDevice } from "./device.ts";
 *
 * using device = new NativeDevice({ threads: 1 });
 * console.log(device.info().kernels);
 * ```
 */
export class NativeDevice implements Disposable {
  /** The library that it belongs to. */
  readonly library: Library;
  /** "cpu", or "cuda:0" and so on. */
  readonly device: string;
  #handle: Deno.PointerValue;

  /**
   * Opens a device.
   *
   * @throws NativeError when there is no such device or library, or the kernels asked for are not
   * available; RangeError for a name that no device has
   */
  constructor(options: NativeDeviceOptions = {}) {
    const { kind, index } = parseDevice(options);
    this.library = openLibrary(kind);
    this.device = kind === "cpu" ? kind : `${kind}:${index}`;
    const err = new ErrorBuffer();
    const { symbols } = this.library;
    const handle = symbols.moela_device_create(
      DeviceOptions.encode({
        index,
        threads: options.threads ?? 0,
        kernels: KernelSet[options.kernels ?? "auto"],
      }),
      err.bytes,
      err.length,
    );
    if (!handle) {
      throw new NativeError(`Cannot open the device: ${err.message()}`);
    }
    this.#handle = handle;
    finalizer.register(this, () => symbols.moela_device_destroy(handle), this);
  }

  /** The library's handle. @throws DisposedError after dispose() */
  get handle(): Deno.PointerObject {
    if (!this.#handle) throw new DisposedError("The device is disposed");
    return this.#handle;
  }

  /** What the device is and has. */
  info(): NativeDeviceInfo {
    const err = new ErrorBuffer();
    const bytes = DeviceInfo.encode({});
    err.check(
      this.library.symbols.moela_device_query(
        this.handle,
        bytes,
        err.bytes,
        err.length,
      ),
      "Cannot query the device",
    );
    const info = DeviceInfo.decode(bytes);
    return {
      name: info.name,
      kernels: kernelNames[info.kernels],
      available: kernelNames.filter((name) =>
        info.available & (1 << KernelSet[name])
      ),
      threads: info.threads,
      memoryTotal: Number(info.memory_total),
      memoryFree: Number(info.memory_free),
    };
  }

  /** Bytes a second at which all threads together read memory: the best of `repeats`. */
  async bandwidth(
    bytes: number = 1 << 29,
    repeats: number = 5,
  ): Promise<number> {
    const err = new ErrorBuffer();
    const rate = new Float64Array(1);
    err.check(
      await this.library.symbols.moela_device_bandwidth(
        this.handle,
        BigInt(bytes),
        repeats,
        rate,
        err.bytes,
        err.length,
      ),
      "Cannot measure the bandwidth",
    );
    return rate[0];
  }

  /** Ends the threads. Models of the device are destroyed before. */
  [Symbol.dispose]() {
    if (!this.#handle) return;
    finalizer.unregister(this);
    this.library.symbols.moela_device_destroy(this.#handle);
    this.#handle = null;
  }
}

/** Whether the CUDA library and a GPU that it runs on are here; asks for no permission. */
export function cudaWorks(): boolean {
  if (!libraryExists("cuda")) return false;
  try {
    using device = new NativeDevice({ device: "cuda", threads: 1 });
    return device.library.kind === "cuda";
  } catch {
    return false;
  }
}
