/**
 * Errors in the shape that OpenAI's clients expect.
 *
 * @module
 */
import { DisposedError, OutOfMemoryError } from "../errors.ts";

/** What an {@link ApiError} says besides its message. */
export interface ApiErrorOptions {
  /** The field of the request that is wrong, as `messages[0].content`. */
  param?: string;
  /** For programs, as `context_length_exceeded`. */
  code?: string;
  /** For the response. */
  headers?: Readonly<Record<string, string>>;
  cause?: unknown;
}

/** An answer other than the one that was asked for. Its message is shown to the client. */
export class ApiError extends Error {
  override readonly name = "ApiError";
  readonly status: number;
  readonly param: string | null;
  readonly code: string | null;
  readonly headers: Readonly<Record<string, string>>;

  constructor(status: number, message: string, options: ApiErrorOptions = {}) {
    super(message, { cause: options.cause });
    this.status = status;
    this.param = options.param ?? null;
    this.code = options.code ?? null;
    this.headers = options.headers ?? {};
  }

  /** OpenAI's name for the kind of error. */
  get type(): string {
    if (this.status === 401) return "authentication_error";
    if (this.status === 429) return "rate_limit_error";
    return this.status < 500 ? "invalid_request_error" : "server_error";
  }

  /** `{ error: { message, type, param, code } }` */
  toJSON(): unknown {
    const { message, type, param, code } = this;
    return { error: { message, type, param, code } };
  }
}

/** A field of the request has the wrong value. */
export function badField(
  param: string,
  found: unknown,
  right: string,
): ApiError {
  return new ApiError(
    400,
    `Invalid '${param}': it is ${show(found)}, and must be ${right}`,
    { param, code: "invalid_value" },
  );
}

/** How a wrong value is called: short, whatever it is. */
export function show(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value.slice(0, 40));
  if (value === undefined) return "absent";
  if (Array.isArray(value)) return "an array";
  return typeof value === "object" && value !== null ? "an object" : `${value}`;
}

/**
 * The error of the API for whatever was thrown.
 *
 * @param param the field that a TypeError or RangeError of the library is about
 */
export function toApiError(error: unknown, param?: string): ApiError {
  if (error instanceof ApiError) return error;
  if (error instanceof OutOfMemoryError) {
    return new ApiError(503, "There is no memory for this request now", {
      code: "out_of_memory",
      headers: { "retry-after": "5" },
      cause: error,
    });
  }
  if (error instanceof DisposedError) {
    return new ApiError(503, "The server is stopping", {
      code: "stopping",
      cause: error,
    });
  }
  // The library says so of what a caller gave it.
  const given = error instanceof TypeError || error instanceof RangeError;
  if (given && /^Cannot (generate|encode|render)\b/.test(error.message)) {
    const grammar = /: grammar\b/.test(error.message);
    return new ApiError(400, error.message, {
      param: grammar ? param ?? "response_format" : param,
      code: "invalid_value",
      cause: error,
    });
  }
  return new ApiError(500, "The server had an error of its own", {
    code: "internal_error",
    cause: error,
  });
}
