/**
 * Reads the JSON of a request within limits.
 *
 * @module
 */
import { ApiError } from "./error.ts";

/** What a body may be. */
export interface BodyLimits {
  maxBodyBytes: number;
  /** Milliseconds until all of it must be there. */
  bodyTimeoutMs: number;
}

/** Objects and arrays within each other at most. */
const MAX_DEPTH = 128;

/** What is left of the body is not wanted: it would be read as the next request. */
const CLOSE = { connection: "close" };

function tooLarge(maxBodyBytes: number): ApiError {
  return new ApiError(
    413,
    `The body is too large: at most ${maxBodyBytes} bytes are taken`,
    { code: "request_too_large", headers: CLOSE },
  );
}

async function readBytes(
  request: Request,
  { maxBodyBytes, bodyTimeoutMs }: BodyLimits,
): Promise<Uint8Array> {
  const length = request.headers.get("content-length");
  if (length !== null && Number(length) > maxBodyBytes) {
    throw tooLarge(maxBodyBytes);
  }
  if (!request.body) return new Uint8Array();
  const reader = request.body.getReader();
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    reader.cancel().catch(() => {});
  }, bodyTimeoutMs);
  const parts: Uint8Array[] = [];
  let bytes = 0;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (late) {
        throw new ApiError(
          408,
          `The body was not complete after ${bodyTimeoutMs} ms`,
          { code: "body_timeout", headers: CLOSE },
        );
      }
      if (done) break;
      bytes += value.length;
      if (bytes > maxBodyBytes) {
        reader.cancel().catch(() => {});
        throw tooLarge(maxBodyBytes);
      }
      parts.push(value);
    }
  } catch (error) {
    if (error instanceof ApiError) throw error;
    throw new ApiError(400, "The body ended early", {
      code: "incomplete_body",
      headers: CLOSE,
      cause: error,
    });
  } finally {
    clearTimeout(timer);
  }
  if (parts.length === 1) return parts[0];
  const whole = new Uint8Array(bytes);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** Whether objects and arrays are nested deeper than any honest request's. */
function isDeep(json: string): boolean {
  let depth = 0;
  let quoted = false;
  for (let i = 0; i < json.length; i++) {
    const code = json.charCodeAt(i);
    if (quoted) {
      if (code === 0x5c) i++; // a backslash
      else if (code === 0x22) quoted = false;
    } else if (code === 0x22) quoted = true;
    else if (code === 0x5b || code === 0x7b) {
      if (++depth > MAX_DEPTH) return true;
    } else if (code === 0x5d || code === 0x7d) depth--;
  }
  return false;
}

/**
 * The JSON of a request's body.
 *
 * @throws ApiError 400, 408, 413, 415
 */
export async function readJson(
  request: Request,
  limits: BodyLimits,
): Promise<unknown> {
  // Also keeps other sites' pages out: without CORS they can send plain text only.
  const type = request.headers.get("content-type")?.split(";")[0].trim();
  if (type?.toLowerCase() !== "application/json") {
    throw new ApiError(
      415,
      "The content-type must be application/json",
      { code: "unsupported_media_type", headers: CLOSE },
    );
  }
  const bytes = await readBytes(request, limits);
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new ApiError(400, "The body is not valid UTF-8", {
      code: "invalid_utf8",
      cause,
    });
  }
  if (isDeep(text)) {
    throw new ApiError(
      400,
      `The body's JSON is nested deeper than ${MAX_DEPTH} levels`,
      { code: "invalid_json" },
    );
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new ApiError(400, "The body is not valid JSON", {
      code: "invalid_json",
      cause,
    });
  }
}
