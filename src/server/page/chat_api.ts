/** What the page asks the server. */
import { eventData } from "./sse.ts";
import type { Candidate, Settings, Stats, TokenInfo, Turn } from "./types.ts";

/** A refusal or failure in words for the person who chats. */
export class ChatError extends Error {
  /** Whether an API key is missing or wrong. */
  readonly needsKey: boolean;

  constructor(message: string, { needsKey = false } = {}) {
    super(message);
    this.needsKey = needsKey;
  }
}

/** Alternatives that are shown for each token. */
const ALTERNATIVES = 8;

/** What there is of an answer so far. */
export interface Piece {
  text: string;
  tokens: TokenInfo[];
}

/** How an answer ended. */
export interface Ending {
  /** `length` where `max_tokens` or the context cut it. */
  reason: "stop" | "length";
  stats: Stats;
}

interface Chunk {
  error?: { message?: string };
  choices?: {
    delta?: { content?: string | null };
    finish_reason?: string | null;
    logprobs?: { content?: ChunkToken[] | null } | null;
  }[];
  usage?: {
    prompt_tokens: number;
    completion_tokens: number;
    prompt_tokens_details?: { cached_tokens?: number };
  };
}

interface ChunkCandidate {
  token: string;
  logprob: number;
  bytes?: number[] | null;
}

interface ChunkToken extends ChunkCandidate {
  top_logprobs?: ChunkCandidate[];
}

/** A token's text; one that is no whole character is shown by its bytes. */
function candidate({ token, logprob, bytes }: ChunkCandidate): Candidate {
  const text = token.includes("\ufffd") && bytes
    ? bytes.map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("")
    : token;
  return { text, logprob };
}

function headers(key: string): Record<string, string> {
  return key === "" ? {} : { authorization: `Bearer ${key}` };
}

/** Why the server refused, in words. */
async function refusal(response: Response): Promise<ChatError> {
  const { status } = response;
  let said = "";
  try {
    const body: Chunk = await response.json();
    said = body.error?.message ?? "";
  } catch {
    // Something between here and the server answered: its page says nothing to a person.
  }
  const because = said === "" ? "" : ` (${said})`;
  if (status === 401 || status === 403) {
    return new ChatError(
      status === 401
        ? "This server wants an API key: enter it in Settings, under Connection"
        : `The server refused this page${because}`,
      { needsKey: status === 401 },
    );
  }
  if (status === 429) {
    const wait = Number(response.headers.get("retry-after"));
    const when = wait > 0 ? `in ${wait} s` : "soon";
    return new ChatError(`The server is busy: try again ${when}`);
  }
  if (status === 503) {
    return new ChatError(`The server takes no requests now${because}`);
  }
  if (status >= 500 || said === "") {
    return new ChatError(`The server failed with status ${status}${because}`);
  }
  return new ChatError(said);
}

async function ask(
  path: string,
  init: RequestInit & { key: string },
): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(path, {
      ...init,
      headers: { ...headers(init.key), "content-type": "application/json" },
    });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new ChatError("The server cannot be reached: is it running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** The name of the server's model. */
export async function modelName(key: string): Promise<string> {
  const response = await ask("/v1/models", { key });
  const { data }: { data: { id: string }[] } = await response.json();
  return data[0].id;
}

/** The text of `/metrics`. */
export async function metricsText(signal: AbortSignal): Promise<string> {
  return await (await ask("/metrics", { key: "", signal })).text();
}

/** The body of the request for an answer to the turns. */
export function requestBody(
  turns: readonly Turn[],
  settings: Settings,
  seed: number,
): Record<string, unknown> {
  const { system, sampling, format, schema, probabilities } = settings;
  const messages = turns.map(({ role, text }) => ({ role, content: text }));
  return {
    messages: system.trim() === ""
      ? messages
      : [{ role: "system", content: system }, ...messages],
    ...sampling,
    seed,
    stream: true,
    stream_options: { include_usage: true },
    ...probabilities ? { logprobs: true, top_logprobs: ALTERNATIVES } : {},
    ...format === "json_object" ? { response_format: { type: format } } : {},
    ...format === "json_schema"
      ? {
        response_format: {
          type: format,
          json_schema: { name: "answer", schema: JSON.parse(schema) },
        },
      }
      : {},
  };
}

/**
 * Streams an answer.
 *
 * @param onPiece gets what came since the last time
 * @throws ChatError; whatever `signal` was aborted with
 */
export async function streamAnswer(
  body: Record<string, unknown>,
  { key, signal }: { key: string; signal: AbortSignal },
  onPiece: (piece: Piece) => void,
): Promise<Ending> {
  const response = await ask("/v1/chat/completions", {
    method: "POST",
    key,
    signal,
    body: JSON.stringify(body),
  });
  let reason: Ending["reason"] | undefined;
  let usage: Chunk["usage"];
  let first = 0;
  let last = 0;
  try {
    for await (const data of eventData(response.body!)) {
      if (data === "[DONE]") break;
      const chunk: Chunk = JSON.parse(data);
      if (chunk.error) {
        throw new ChatError(
          `The answer broke off: ${
            chunk.error.message ?? "no reason is given"
          }`,
        );
      }
      usage = chunk.usage ?? usage;
      const [choice] = chunk.choices ?? [];
      if (!choice) continue;
      const text = choice.delta?.content ?? "";
      const tokens = (choice.logprobs?.content ?? []).map((each) => ({
        ...candidate(each),
        top: (each.top_logprobs ?? []).map(candidate),
      }));
      if (text !== "" || tokens.length > 0) {
        last = performance.now();
        first ||= last;
        onPiece({ text, tokens });
      }
      if (choice.finish_reason) {
        reason = choice.finish_reason === "length" ? "length" : "stop";
      }
    }
  } catch (error) {
    if (signal.aborted || error instanceof ChatError) throw error;
    throw new ChatError("The connection broke in the middle of the answer");
  }
  signal.throwIfAborted();
  if (reason === undefined) {
    throw new ChatError("The connection ended before the answer did");
  }
  return {
    reason,
    stats: {
      tokens: usage?.completion_tokens ?? 0,
      promptTokens: usage?.prompt_tokens ?? 0,
      cachedTokens: usage?.prompt_tokens_details?.cached_tokens ?? 0,
      seconds: (last - first) / 1000,
    },
  };
}
