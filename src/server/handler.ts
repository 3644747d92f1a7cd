/**
 * An HTTP handler that OpenAI's clients can talk to.
 *
 * @module
 */
import type { Model } from "../model/model.ts";
import { readJson } from "./body.ts";
import { chatCompletion } from "./chat.ts";
import { completion } from "./completions.ts";
import { allowOrigin, preflight } from "./cors.ts";
import { ApiError, toApiError } from "./error.ts";
import { Exchange } from "./exchange.ts";
import { Keys } from "./keys.ts";
import type { LogEntry } from "./log.ts";
import { resolveSettings, type ServerOptions } from "./options.ts";
import { Page } from "./page.ts";
import { Service } from "./service.ts";
import { tokenize } from "./tokenize.ts";

/** What `createHandler()` makes: for `Deno.serve()`. */
export interface Handler {
  /** Answers one request; never rejects. */
  (request: Request): Promise<Response>;
  /**
   * From now on answers 503, and resolves when the requests at hand are answered. Those that are
   * not after `timeoutMs` (default 25,000) are cut.
   */
  drain(options?: { timeoutMs?: number }): Promise<void>;
}

type Answer = (
  service: Service,
  exchange: Exchange,
  body: unknown,
) => Promise<Response> | Response;

/** What is posted. */
const POSTS: ReadonlyMap<string, Answer> = new Map<string, Answer>([
  ["/v1/chat/completions", chatCompletion],
  ["/v1/completions", completion],
  ["/v1/tokenize", (service, _, body) => tokenize(service, body)],
]);

const MODELS = "/v1/models";

function modelObject({ settings, created, model }: Service) {
  return {
    id: settings.modelId,
    object: "model",
    created,
    owned_by: "moela",
    max_model_len: model.config.max_position_embeddings,
  };
}

/** What is read, but for the page. */
function get(service: Service, path: string): Response | undefined {
  if (path === "/health") {
    const { draining, settings } = service;
    return Response.json(
      { status: draining ? "draining" : "ok", model: settings.modelId },
      { status: draining ? 503 : 200 },
    );
  }
  if (path === "/metrics") {
    return new Response(service.metrics.text(service.gauges()), {
      headers: { "content-type": "text/plain; version=0.0.4; charset=utf-8" },
    });
  }
  if (path === MODELS) {
    return Response.json({ object: "list", data: [modelObject(service)] });
  }
  if (path.startsWith(`${MODELS}/`)) {
    let name = path.slice(MODELS.length + 1);
    try {
      name = decodeURIComponent(name);
    } catch {
      // Not a name that a model has.
    }
    service.findModel(name);
    return Response.json(modelObject(service));
  }
  return undefined;
}

/** How metrics call a path: one series for all that are unknown. */
function endpointOf(path: string): string {
  if (POSTS.has(path) || ["/health", "/metrics", "/"].includes(path)) {
    return path;
  }
  return path === MODELS || path.startsWith(`${MODELS}/`) ? MODELS : "other";
}

/** Logs and counts an exchange that is over. */
function report(service: Service, exchange: Exchange, status: number) {
  const { metrics, settings, active } = service;
  const { notes, path, request, id, started } = exchange;
  active.delete(exchange);
  const durationMs = performance.now() - started;
  const endpoint = endpointOf(path);
  metrics.requests.add(1, { endpoint, status: `${status}` });
  if (notes.aborted) metrics.aborted.add();
  if (POSTS.has(path)) metrics.duration.observe(durationMs / 1000);
  const entry: LogEntry = {
    time: new Date().toISOString(),
    level: status >= 500 || notes.error
      ? "error"
      : status >= 400
      ? "warn"
      : "info",
    id,
    method: request.method,
    path: endpoint === "other" ? "other" : path,
    status,
    durationMs: Math.round(durationMs),
    ...notes,
  };
  settings.log(entry);
}

/** The response for what was thrown, noted for the log. */
function failure(exchange: Exchange, error: unknown): Response {
  const answer = toApiError(error);
  exchange.note(answer);
  return Response.json(answer, {
    status: answer.status,
    headers: answer.headers,
  });
}

async function route(
  service: Service,
  exchange: Exchange,
  keys: Keys,
  page: Page,
): Promise<Response> {
  const { request, path } = exchange;
  const { method } = request;
  if (path.startsWith("/v1/")) keys.check(request);
  const post = POSTS.get(path);
  const reads = method === "GET" || method === "HEAD";
  if (post && method === "POST") {
    service.admit(exchange);
    return await post(
      service,
      exchange,
      await readJson(request, service.settings),
    );
  }
  const found = post || !reads ? undefined : get(service, path);
  if (found) return found;
  const file = reads ? await page.get(path) : undefined;
  if (file) return file;
  const known = post ? "POST" : endpointOf(path) !== "other" && !reads && "GET";
  if (known) {
    throw new ApiError(405, `${path} takes ${known}`, {
      code: "method_not_allowed",
      headers: { allow: known, connection: "close" },
    });
  }
  throw new ApiError(404, "There is nothing at this path", {
    code: "not_found",
    ...reads ? {} : { headers: { connection: "close" } },
  });
}

/**
 * Makes a handler for `Deno.serve()` that speaks OpenAI's protocol: `/v1/models`,
 * `/v1/chat/completions`, `/v1/completions`, `/v1/tokenize`, `/health` and `/metrics`. All requests
 * run batched on the model, which stays the caller's: it is to be disposed after the server.
 *
 * @param model its checkpoint must have a tokenizer
 * @throws TypeError, RangeError for bad options, or a model without a tokenizer
 *
 * @example
 * ```ts
 * import { createHandler, loadModel } from "../../mod.ts";
 *
 * await using model = await loadModel(new URL("../../models/nano", import.meta.url));
 * const handler = createHandler(model, { modelId: "nano" });
 * const answer = await handler(
 *   new Request("http://localhost/v1/completions", {
 *     method: "POST",
 *     headers: { "content-type": "application/json" },
 *     body: JSON.stringify({ model: "nano", prompt: "Once upon a time", max_tokens: 4 }),
 *   }),
 * );
 * console.assert((await answer.json()).choices.length === 1);
 * ```
 *
 * On the network: `Deno.serve({ hostname: "127.0.0.1", port: 8000 }, handler)`.
 */
export function createHandler(
  model: Model,
  options: ServerOptions = {},
): Handler {
  void model.tokenizer;
  const settings = resolveSettings(options, model.config);
  const service = new Service(model, settings);
  const keys = new Keys(settings.apiKeys);
  const page = new Page(settings.page);
  const handle = async (request: Request): Promise<Response> => {
    const { pathname, hostname } = new URL(request.url);
    const exchange = new Exchange(
      request,
      pathname,
      (exchange, status) => report(service, exchange, status),
    );
    let response: Response;
    try {
      service.checkHost(hostname);
      response = request.method === "OPTIONS" && settings.cors.length > 0
        ? preflight(request)
        : await route(service, exchange, keys, page);
    } catch (error) {
      response = failure(exchange, error);
    }
    if (!exchange.deferred) exchange.end(response.status);
    response.headers.set("x-request-id", exchange.id);
    allowOrigin(request, response, settings.cors);
    return response;
  };
  return Object.assign(handle, {
    drain: ({ timeoutMs = 25_000 } = {}) => service.drain(timeoutMs),
  });
}
