import { NativeError, OutOfMemoryError } from "../src/errors.ts";
import { Status } from "./enums.ts";

/** Room for a message of the library. */
const ERR_BYTES = 1024;

/** What a call ended by its control word rejects with; callers turn it into their own reason. */
export class CancelledError extends Error {
  /** Always "CancelledError". */
  override name = "CancelledError";
}

/** The `err, err_len` arguments of one call, and what becomes of its status. */
export class ErrorBuffer {
  readonly bytes = new Uint8Array(ERR_BYTES);
  readonly length = BigInt(ERR_BYTES);

  /** The library's message. */
  message(): string {
    const end = this.bytes.indexOf(0);
    return new TextDecoder().decode(this.bytes.subarray(0, Math.max(end, 0)));
  }

  /** The error for a status other than OK; `what` says what could not be done. */
  error(status: number, what: string): Error {
    const message = this.message();
    if (status === Status.CANCELLED) return new CancelledError(message);
    if (status === Status.MEMORY) {
      const [asked, free, ...name] = message.split(" ");
      return new OutOfMemoryError(
        `${what}: ${name.join(" ")} needs ${asked} bytes, and ${free} are free`,
        { bytesAsked: Number(asked), bytesFree: Number(free) },
      );
    }
    return new NativeError(`${what}: ${message}`, { status });
  }

  /** Throws unless the status is OK. */
  check(status: number, what: string) {
    if (status !== Status.OK) throw this.error(status, what);
  }

  /** Throws on `-status`; else an id or a size. */
  unwrap(result: number, what: string): number {
    if (result < 0) throw this.error(-result, what);
    return result;
  }
}
