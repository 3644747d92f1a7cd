/**
 * A model as a service: what all requests share.
 *
 * @module
 */
import type { Model } from "../model/model.ts";
import { ApiError } from "./error.ts";
import { Flusher } from "./event_stream.ts";
import type { Exchange } from "./exchange.ts";
import type { Fields } from "./fields.ts";
import { Gate } from "./gate.ts";
import { type Gauges, Metrics } from "./metrics.ts";
import type { Settings } from "./options.ts";
import { type ToolFormat, toolFormat } from "./tool_format.ts";

/** What templates may put before an answer. */
const LEADS = ["\n\n", "\n", " "];

/** The state of a server. */
export class Service {
  readonly model: Model;
  readonly settings: Settings;
  readonly metrics = new Metrics();
  readonly flusher = new Flusher();
  readonly gate: Gate;
  /** Requests whose answer is not complete. */
  readonly active = new Set<Exchange>();
  /** Seconds since 1970. */
  readonly created = Math.floor(Date.now() / 1000);
  /** Set when no further requests are taken. */
  draining = false;
  #lead: string | undefined;
  #format: ToolFormat | undefined;
  #longestToken = 0;

  constructor(model: Model, settings: Settings) {
    this.model = model;
    this.settings = settings;
    this.gate = new Gate(settings.maxConcurrent);
  }

  /** What the chat template puts before answers, and the model writes. */
  get lead(): string {
    const { tokenizer } = this.model;
    return this.#lead ??=
      LEADS.find((lead) =>
        tokenizer.answerMessage(`${lead}x`).content === "x"
      ) ?? "";
  }

  /** How tools are called. */
  get format(): ToolFormat {
    return this.#format ??= toolFormat(this.model.tokenizer, this.lead);
  }

  /** Fails for a host's name that is not the server's. @throws ApiError 403 */
  checkHost(hostname: string) {
    const { hosts } = this.settings;
    if (hosts.length === 0 || hosts.includes(hostname)) return;
    throw new ApiError(403, "The server is not called by this host's name", {
      code: "wrong_host",
      headers: { connection: "close" },
    });
  }

  /** Fails unless the request names the model, or none. @throws ApiError 404 */
  checkModel(request: Fields) {
    const name = request.string("model");
    if (name !== undefined) this.findModel(name);
  }

  /** @throws ApiError 404 */
  findModel(name: string) {
    const { modelId, aliases } = this.settings;
    if (name === modelId || aliases.includes(name)) return;
    throw new ApiError(
      404,
      `The model '${
        name.slice(0, 100)
      }' does not exist here: there is '${modelId}'`,
      { param: "model", code: "model_not_found" },
    );
  }

  /**
   * Fails for a prompt that cannot be run.
   *
   * @throws ApiError 400
   */
  checkPrompt(tokens: readonly number[], param: string) {
    const { maxPromptTokens } = this.settings;
    if (tokens.length === 0) {
      throw new ApiError(400, `Invalid '${param}': it has no tokens`, {
        param,
        code: "invalid_value",
      });
    }
    if (tokens.length > maxPromptTokens) {
      throw this.#tooLong(`has ${tokens.length} tokens`, param);
    }
  }

  /** Fails for a text that is too long whatever its tokens are: they need not be made. */
  checkText(characters: number, param: string) {
    if (this.#longestToken === 0) {
      const { table } = this.model.tokenizer;
      for (let id = 0; id < table.size; id++) {
        const { length } = table.bytes(id);
        if (length > this.#longestToken) this.#longestToken = length;
      }
    }
    const { maxPromptTokens } = this.settings;
    if (characters > maxPromptTokens * this.#longestToken) {
      throw this.#tooLong(`has ${characters} characters`, param);
    }
  }

  #tooLong(has: string, param: string): ApiError {
    const { maxPromptTokens } = this.settings;
    return new ApiError(
      400,
      `The prompt is too long: it ${has}, and may have ${maxPromptTokens} tokens`,
      { param, code: "context_length_exceeded" },
    );
  }

  /** Takes a request in. @throws ApiError 429, 503 */
  admit(exchange: Exchange) {
    if (this.draining) {
      throw new ApiError(503, "The server is stopping", {
        code: "stopping",
        headers: { "retry-after": "1", connection: "close" },
      });
    }
    const { maxConcurrent, maxQueue, requestTimeoutMs } = this.settings;
    if (this.active.size >= maxConcurrent + maxQueue) {
      throw new ApiError(
        429,
        "Too many requests are running and waiting; try again soon",
        {
          code: "queue_full",
          headers: { "retry-after": "1", connection: "close" },
        },
      );
    }
    this.active.add(exchange);
    exchange.watch(requestTimeoutMs);
  }

  /** Numbers of the moment. */
  gauges(): Gauges {
    return {
      ...this.model.load,
      ...this.model.memory(),
      queued: this.gate.waiting,
      active: this.active.size,
    };
  }

  /**
   * Takes no further requests, and resolves when those at hand are done; what is left after
   * `timeoutMs` is cut.
   */
  async drain(timeoutMs: number): Promise<void> {
    this.draining = true;
    const end = performance.now() + timeoutMs;
    let cut = false;
    while (this.active.size > 0) {
      if (!cut && performance.now() >= end) {
        cut = true;
        const reason = new ApiError(503, "The server is stopping", {
          code: "stopping",
        });
        for (const exchange of this.active) exchange.abort(reason);
      }
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }
}
