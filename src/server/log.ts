/**
 * What is logged of a request: never a prompt or an answer.
 *
 * @module
 */

/** One request, when its answer is complete. */
export interface LogEntry {
  /** ISO 8601. */
  time: string;
  /** error from status 500 on, warn from 400 on. */
  level: "info" | "warn" | "error";
  /** Of the request: the answer's `x-request-id`. */
  id: string;
  /** Of HTTP. */
  method: string;
  /** The endpoint, or `other`. */
  path: string;
  /** Of HTTP; 499 when the client left before an answer. */
  status: number;
  /** Until the end of the answer, milliseconds. */
  durationMs: number;
  /** The kind of error, when there was one. */
  code?: string;
  /** The field of the request that it is about. */
  param?: string;
  /** The client left before the end. */
  aborted?: boolean;
  /** Whether the answer was streamed. */
  stream?: boolean;
  /** Tokens of all prompts. */
  promptTokens?: number;
  /** Of them, those that the prefix cache held. */
  cachedTokens?: number;
  /** Tokens of all choices. */
  completionTokens?: number;
  /** Milliseconds until the first token. */
  firstTokenMs?: number;
  /** One for each choice. */
  finishReasons?: string[];
  /** What went wrong in the server, with its stack. */
  error?: string;
}

/** Writes entries as lines of JSON. */
export function jsonLog(write: (line: string) => void) {
  return (entry: LogEntry) => write(JSON.stringify(entry));
}
