/**
 * `POST /v1/chat/completions`
 *
 * @module
 */
import type { GenerateOptions } from "../generate/options.ts";
import type { Grammar } from "../grammar/grammar.ts";
import { answer, type PlannedChoice } from "./answer.ts";
import { CHAT_OBJECT, ChatChoice } from "./chat_writer.ts";
import { type ChoiceRun, type ChoiceSink, Lead, runText } from "./choice.ts";
import type { Exchange } from "./exchange.ts";
import { Fields } from "./fields.ts";
import { readMessages } from "./messages.ts";
import { readSampling } from "./sampling.ts";
import type { Service } from "./service.ts";
import { runTools } from "./tool_calls.ts";
import { readTools } from "./tools.ts";

/** What `response_format` holds the answer to. */
function responseGrammar(request: Fields): Grammar | undefined {
  const format = request.fields("response_format");
  if (format === undefined) return undefined;
  const type = format.required(
    "type",
    format.oneOf("type", ["text", "json_object", "json_schema"]),
  );
  if (type === "text") return undefined;
  if (type === "json_object") return { json: { type: "object" } };
  const described = format.required(
    "json_schema",
    format.fields("json_schema"),
  );
  const schema = described.required("schema", described.fields("schema"));
  return { json: schema.object };
}

/** Alternatives that `logprobs` and `top_logprobs` ask for. */
function topLogprobs(request: Fields): number | undefined {
  const top = request.integer("top_logprobs", { min: 0, max: 20 });
  if (request.boolean("logprobs") === true) return top ?? 0;
  if (top !== undefined) {
    request.fail("top_logprobs", "absent without logprobs");
  }
  return undefined;
}

/** Hands everything to a writer, and tells that it has changed. */
function sinkOf(writer: ChoiceSink, lead: Lead, changed: () => void) {
  const sink: ChoiceSink = {
    text(text, logprobs) {
      const shown = lead.push(text);
      if (shown === "" && !logprobs?.length) return;
      writer.text(shown, logprobs);
      changed();
    },
    call(id, name) {
      writer.call(id, name);
      changed();
    },
    callArguments(text) {
      if (text === "") return;
      writer.callArguments(text);
      changed();
    },
  };
  return sink;
}

/**
 * Answers it.
 *
 * @throws ApiError
 */
export async function chatCompletion(
  service: Service,
  exchange: Exchange,
  body: unknown,
): Promise<Response> {
  const { model, settings } = service;
  const request = new Fields(body);
  service.checkModel(request);
  const messages = readMessages(request);
  const range = { min: 1, max: Number.MAX_SAFE_INTEGER };
  const maxTokens = request.integer("max_completion_tokens", range) ??
    request.integer("max_tokens", range);
  const sampling = readSampling(
    request,
    settings,
    model.config.vocab_size,
    maxTokens,
  );
  const choice = readTools(request);
  const grammar = responseGrammar(request);
  if (grammar && choice && !choice.required) {
    request.fail(
      "response_format",
      "absent or 'text' where tools may be called; with tool_choice 'none' or " +
        "'required' it may be there",
    );
  }
  const logprobs = topLogprobs(request);
  const characters = messages.reduce((n, { content }) => n + content.length, 0);
  service.checkText(characters, "messages");
  const asked = service.format.messages(messages, choice?.tools ?? []);
  const prompt = model.tokenizer.encode(asked);
  service.checkPrompt(prompt, "messages");
  const head = {
    id: `chatcmpl-${exchange.id.slice(4)}`,
    created: Math.floor(Date.now() / 1000),
    model: settings.modelId,
  };
  const shared: GenerateOptions = { ...sampling.options, logprobs, grammar };
  const writing = { stream: sampling.stream, logprobs: logprobs !== undefined };
  const choices = Array.from({ length: sampling.n }, (_, i): PlannedChoice => {
    const options = { ...shared, seed: sampling.seed + i };
    const writer = new ChatChoice(head, i, writing);
    const run = async (run: ChoiceRun, changed: () => void) => {
      const lead = new Lead(service.lead);
      const sink = sinkOf(writer, lead, changed);
      const end = await (choice
        ? runTools(run, prompt, options, choice, service.format, sink)
        : runText(run, prompt, options, sink));
      // Kept only if nothing followed it, and then it comes before no call.
      writer.text(lead.flush(), undefined);
      return end;
    };
    return { prompt, writer, run };
  });
  return await answer(service, exchange, {
    head,
    objects: { whole: CHAT_OBJECT, chunk: `${CHAT_OBJECT}.chunk` },
    sampling,
    choices,
    param: grammar ? "response_format" : "messages",
  });
}
