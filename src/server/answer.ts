/**
 * Runs the choices of a request and sends them: whole or streamed.
 *
 * @module
 */
import type { AnswerHead, ChoiceWriter } from "./chat_writer.ts";
import { type ChoiceEnd, type ChoiceRun, tokenClock } from "./choice.ts";
import { toApiError } from "./error.ts";
import { EventStream } from "./event_stream.ts";
import type { Exchange } from "./exchange.ts";
import type { Sampling } from "./sampling.ts";
import type { Service } from "./service.ts";

/** Prompts of at least so many tokens are run once before several choices share them. */
const SHARED_PROMPT = 128;
/** Milliseconds in which a request may still fail with a status of its own. */
const GRACE_MS = 1000;

/** A choice that is to be run. */
export interface PlannedChoice {
  prompt: readonly number[];
  writer: ChoiceWriter;
  /** @param changed called whenever the writer has something more */
  run(run: ChoiceRun, changed: () => void): Promise<ChoiceEnd>;
}

/** What is to be answered. */
export interface AnswerPlan {
  head: AnswerHead;
  /** Of a whole answer, and of chunks. */
  objects: { whole: string; chunk: string };
  sampling: Sampling;
  choices: readonly PlannedChoice[];
  /** The field to blame for what the library refuses. */
  param: string;
}

function usageOf(
  { n }: Sampling,
  ends: readonly ChoiceEnd[],
) {
  const sum = (count: (end: ChoiceEnd) => number, list: readonly ChoiceEnd[]) =>
    list.reduce((total, end) => total + count(end), 0);
  // A prompt counts once, however many choices it has.
  const prompts = ends.filter((_, i) => i % n === 0);
  const promptTokens = sum((end) => end.promptTokens, prompts);
  const completionTokens = sum((end) => end.completionTokens, ends);
  return {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: promptTokens + completionTokens,
    prompt_tokens_details: {
      cached_tokens: sum((end) => end.cachedTokens, prompts),
    },
  };
}

/** Runs all choices; the first failure ends the others and is thrown when they have ended. */
async function runChoices(
  service: Service,
  exchange: Exchange,
  { choices, sampling, param }: AnswerPlan,
  changed: () => void,
): Promise<ChoiceEnd[]> {
  const { model, metrics } = service;
  const { signal, notes, started } = exchange;
  const [first] = choices;
  if (sampling.n > 1 && first.prompt.length >= SHARED_PROMPT) {
    await model.generate(first.prompt, { maxTokens: 0, signal }).result();
  }
  const settled = await Promise.allSettled(choices.map(async (choice) => {
    const onToken = tokenClock(metrics, started, (milliseconds) => {
      metrics.firstToken.observe(milliseconds / 1000);
      notes.firstTokenMs ??= Math.round(milliseconds);
    });
    try {
      return await choice.run({ model, metrics, signal, onToken }, changed);
    } catch (error) {
      exchange.abort(toApiError(error, param));
      throw error;
    }
  }));
  if (signal.aborted) throw signal.reason;
  const ends = settled.map((each) =>
    (each as PromiseFulfilledResult<ChoiceEnd>).value
  );
  for (const end of ends) {
    metrics.generations.add(1, { reason: end.finishReason });
    metrics.promptTokens.add(end.promptTokens);
    metrics.cachedTokens.add(end.cachedTokens);
    if (end.cachedTokens > 0) metrics.prefixHits.add();
  }
  return ends;
}

/** Notes for the log, and the usage. */
function account(exchange: Exchange, plan: AnswerPlan, ends: ChoiceEnd[]) {
  const usage = usageOf(plan.sampling, ends);
  Object.assign(exchange.notes, {
    promptTokens: usage.prompt_tokens,
    cachedTokens: usage.prompt_tokens_details.cached_tokens,
    completionTokens: usage.completion_tokens,
    finishReasons: ends.map((end) => end.finishReason),
  });
  return usage;
}

/** Waits for a place, and runs the choices. */
async function run(
  service: Service,
  exchange: Exchange,
  plan: AnswerPlan,
  changed: () => void,
): Promise<ChoiceEnd[]> {
  const { gate } = service;
  const release = await gate.enter(plan.choices.length, exchange.signal);
  try {
    return await runChoices(service, exchange, plan, changed);
  } finally {
    release();
  }
}

/**
 * Waits until an answer can begin: for `begun`, but no longer than {@link GRACE_MS}. From then on it
 * is known when the client leaves: `Deno.serve` may not see that before there is a response.
 *
 * @param ended rejects when the request fails
 */
async function begin<T>(ended: Promise<T>, begun?: Promise<void>) {
  const grace = Promise.withResolvers<void>();
  const timer = setTimeout(grace.resolve, GRACE_MS);
  try {
    await Promise.race([ended, grace.promise, ...begun ? [begun] : []]);
  } finally {
    clearTimeout(timer);
  }
}

/** Sends the answer when all choices have ended. */
async function whole(
  service: Service,
  exchange: Exchange,
  plan: AnswerPlan,
): Promise<Response> {
  const { id, created, model } = plan.head;
  const headers = { "content-type": "application/json" };
  let text: string | undefined;
  const ended = run(service, exchange, plan, () => {}).then((ends) => {
    const usage = account(exchange, plan, ends);
    const choices = plan.choices.map(({ writer }, i) => writer.choice(ends[i]));
    const object = plan.objects.whole;
    text = JSON.stringify({ id, object, created, model, choices, usage });
    return text;
  });
  await begin(ended);
  if (text !== undefined) return new Response(text, { headers });
  exchange.deferred = true;
  const body = new ReadableStream<Uint8Array>({
    start: async (controller) => {
      let status = 200;
      try {
        const bytes = new TextEncoder().encode(await ended);
        // Whoever has left takes nothing more.
        if (!exchange.signal.aborted) {
          controller.enqueue(bytes);
          controller.close();
        }
      } catch (error) {
        // The status is sent: the client learns by the connection's end.
        const failure = toApiError(error, plan.param);
        exchange.note(failure);
        status = failure.status;
        controller.error(failure.message);
      }
      exchange.end(status);
    },
    cancel: () => exchange.leave(),
  });
  return new Response(body, { headers });
}

/** Sends what choices write until all have ended. */
async function stream(
  service: Service,
  exchange: Exchange,
  plan: AnswerPlan,
): Promise<Response> {
  const { choices, sampling, head, objects } = plan;
  const begun = Promise.withResolvers<void>();
  const events = new EventStream({
    flusher: service.flusher,
    drain: () => choices.map(({ writer }) => writer.drain()).join(""),
    cancel: () => exchange.leave(),
  });
  const changed = () => {
    events.changed();
    begun.resolve();
  };
  const ended = run(service, exchange, plan, changed).then((ends) => {
    const usage = account(exchange, plan, ends);
    const { id, created, model } = head;
    const chunk = { id, object: objects.chunk, created, model };
    const last = choices.map(({ writer }, i) => writer.finish(ends[i]));
    if (sampling.includeUsage) {
      last.push(
        `data: ${JSON.stringify({ ...chunk, choices: [], usage })}\n\n`,
      );
    }
    events.close(`${last.join("")}data: [DONE]\n\n`);
  });
  try {
    await begin(ended, begun.promise);
  } catch (error) {
    events.close("");
    throw error;
  }
  exchange.deferred = true;
  ended.catch((error) => {
    // The status is sent: the client learns by an event.
    const failure = toApiError(error, plan.param);
    exchange.note(failure);
    events.close(`data: ${JSON.stringify(failure)}\n\n`);
  }).finally(() => exchange.end(200));
  return new Response(events.body, {
    headers: {
      "content-type": "text/event-stream; charset=utf-8",
      // Compression would hold events back.
      "cache-control": "no-cache, no-transform",
      "x-accel-buffering": "no",
    },
  });
}

/**
 * Waits for a place, runs the choices and answers with them.
 *
 * @returns a response; a deferred one ends its exchange itself
 * @throws ApiError
 */
export async function answer(
  service: Service,
  exchange: Exchange,
  plan: AnswerPlan,
): Promise<Response> {
  const { stream: streamed } = plan.sampling;
  exchange.notes.stream = streamed;
  return await (streamed ? stream : whole)(service, exchange, plan);
}
