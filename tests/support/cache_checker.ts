/**
 * Random calls on many caches of a model, each result compared with that of a naive one which computes
 * everything anew.
 */
import { assert, assertEquals } from "@std/assert";
import {
  type Cache,
  type GenerateOptions,
  type GenerationResult,
  type Model,
  OutOfMemoryError,
  type TokenLogprobs,
} from "../../mod.ts";
import { assertSameBits } from "./ops.ts";
import { type Action, BASES, VOCAB } from "./cache_actions.ts";
import { relativeError } from "./numbers.ts";

/** Of tiny-v2 in f32: layers, elements, tokens, bytes. */
export const PAGE_BYTES = 3 * 48 * 64 * 4;

/** Tokens computed in one call, which chose their path, and how many of them are still held. */
interface Call {
  tokens: number[];
  kept: number;
}

/** A cache, and the calls that filled it. */
interface Held {
  cache: Cache;
  calls: Call[];
}

const call = (tokens: number[]): Call => ({ tokens, kept: tokens.length });
const heldTokens = (calls: readonly Call[]) =>
  calls.flatMap(({ tokens, kept }) => tokens.slice(0, kept));

/** Logits after `calls` and one more of `next`, from nothing. */
async function recompute(
  naive: Model,
  calls: readonly Call[],
  next: readonly number[],
): Promise<Float32Array<ArrayBuffer>> {
  const cache = naive.createCache();
  for (const { tokens, kept } of calls) {
    const before = cache.length;
    await naive.forward(tokens, { cache });
    cache.truncate(before + kept);
  }
  const logits = await naive.forward(next, { cache });
  cache.dispose();
  return new Float32Array(logits);
}

/** The calls that leave the first `length` tokens as they were computed. */
function cut(calls: readonly Call[], length: number): Call[] {
  const left: Call[] = [];
  for (const { tokens, kept } of calls) {
    if (length === 0) break;
    left.push({ tokens, kept: Math.min(kept, length) });
    length -= left[left.length - 1].kept;
  }
  return left;
}

/** How results are held against the naive model's. */
export interface CheckerOptions {
  /** Whether requests without a cache of their own may find prefixes of others. */
  reusePrefix: boolean;
  /** Pages that the model has, when there are so few that they run out. */
  pages?: number;
}

/** Runs actions, and knows what every cache must hold. */
export class Checker {
  readonly held: Held[] = [];
  /** Calls that ended for lack of memory, and prompts that found their beginning cached. */
  static refused = 0;
  static reused = 0;

  constructor(
    readonly model: Model,
    readonly naive: Model,
    readonly folder: string,
    readonly options: CheckerOptions,
  ) {}

  pick(i: number): Held | undefined {
    return this.held[i % Math.max(this.held.length, 1)];
  }

  dispose() {
    for (const { cache } of this.held) cache.dispose();
  }

  async run(action: Action) {
    switch (action.kind) {
      case "create":
        return this.create(action.capacity);
      case "beside":
        return await this.beside(action.tokens, action.count);
      case "alike": {
        const { base, length, tokens } = action;
        return await this.beside(
          [...BASES[base].slice(0, length), ...tokens],
          2,
        );
      }
      case "together":
        return await this.together(action.caches, action.tokens, action.count);
    }
    const held = this.pick(action.cache);
    if (!held) return;
    const { cache } = held;
    switch (action.kind) {
      case "append":
        await this.append(held, action.tokens);
        break;
      case "fork":
        if (this.held.length >= 6) return;
        this.held.push({ cache: cache.fork(), calls: held.calls.slice() });
        break;
      case "truncate": {
        const length = Math.floor(cache.length * action.keep / 100);
        cache.truncate(length);
        held.calls = cut(held.calls, length);
        break;
      }
      case "generate":
        await this.generate(held, action.tokens, action.keep);
        break;
      case "abort":
        await this.abort(held, action.tokens);
        break;
      case "reload":
        await this.reload(held);
        break;
      case "dispose":
        cache.dispose();
        this.held.splice(this.held.indexOf(held), 1);
        return;
    }
    await this.check(held);
  }

  /** What a cache gives next is what it would after the same calls alone. */
  async check({ cache, calls }: Held) {
    assertEquals(cache.tokens, heldTokens(calls));
    if (cache.length === cache.capacity) return;
    using fork = cache.fork();
    const logits = await this.unlessFull(
      1,
      fork,
      () => this.model.forward([7], { cache: fork }),
    );
    if (!logits) return;
    const expected = await recompute(this.naive, calls, [7]);
    assertSameBits(new Float32Array(logits), expected, "logits");
  }

  /**
   * Runs a call that computes `count` tokens more. It may end for lack of memory, but only when there
   * is none beside what caches hold.
   */
  async unlessFull<T>(
    count: number,
    cache: Cache | undefined,
    call: () => Promise<T>,
  ): Promise<T | undefined> {
    const { pages } = this.options;
    const { caches } = this.model.memory();
    try {
      return await call();
    } catch (error) {
      if (!(error instanceof OutOfMemoryError) || !pages) throw error;
      const length = cache?.length ?? 0;
      // The page that the next token falls into may be another's, too.
      const needed = Math.ceil((length + count) / 64) - Math.floor(length / 64);
      const free = pages - caches / PAGE_BYTES;
      assert(needed > free, `${needed} pages needed, ${free} free: ${error}`);
      Checker.refused++;
      return undefined;
    }
  }

  create(capacity: number | undefined) {
    if (this.held.length >= 6) return;
    try {
      const cache = this.model.createCache({ capacity });
      this.held.push({ cache, calls: [] });
    } catch (error) {
      if (!(error instanceof OutOfMemoryError) || !this.options.pages) {
        throw error;
      }
    }
  }

  async append(held: Held, tokens: number[]) {
    const { cache, calls } = held;
    const before = cache.length;
    if (before + tokens.length > cache.capacity) return;
    const logits = await this.unlessFull(
      tokens.length,
      cache,
      () => this.model.forward(tokens, { cache }),
    );
    if (!logits) {
      const asked = [...heldTokens(calls), ...tokens];
      assertEquals(cache.tokens, asked.slice(0, cache.length));
      return cache.truncate(before);
    }
    const expected = await recompute(this.naive, calls, tokens);
    assertSameBits(new Float32Array(logits), expected, "append");
    held.calls.push(call(tokens));
  }

  async generate(held: Held, more: number[], keep: number) {
    const { cache, calls } = held;
    const kept = Math.floor(cache.length * keep / 100);
    const prompt = [...cache.tokens.slice(0, kept), ...more];
    if (cache.capacity - prompt.length < 4) return;
    const before = heldTokens(calls);
    const result = await this.unlessFull(
      prompt.length + 4 - cache.length,
      cache,
      () =>
        this.model.generate(prompt, {
          cache,
          maxTokens: 4,
          temperature: 1,
          seed: prompt.length,
          ignoreEos: true,
        }).result(),
    );
    if (!result) {
      // A part of the prompt, and perhaps of an answer that nobody saw.
      const common = before.findIndex((id, i) => id !== prompt[i]);
      const same = common < 0 ? before.length : common;
      assertEquals(
        cache.tokens.slice(0, prompt.length),
        prompt.slice(0, cache.length),
      );
      const length = Math.min(cache.length, same, prompt.length - 1);
      cache.truncate(length);
      held.calls = cut(calls, length);
      return;
    }
    const { tokens, usage } = result;
    assertEquals(tokens.length, 4);
    held.calls = [
      ...cut(calls, usage.cachedTokens),
      call(prompt.slice(usage.cachedTokens)),
      ...tokens.map((id) => call([id])),
    ];
  }

  async abort({ cache }: Held, tokens: number[]) {
    if (cache.capacity - cache.length < tokens.length) return;
    const before = cache.tokens;
    const controller = new AbortController();
    const { signal } = controller;
    const pending = this.model.forward(tokens, { cache, signal });
    setTimeout(() => controller.abort(), tokens.length % 3);
    await pending.catch(() => {});
    const asked = [...before, ...tokens];
    assertEquals(cache.tokens, asked.slice(0, cache.length));
    // Cut back, since how much was computed is not ours to know.
    cache.truncate(before.length);
  }

  async reload(held: Held) {
    const { cache } = held;
    const path = `${this.folder}/saved.cache`;
    await cache.save(path);
    const loaded = await this.unlessFull(
      cache.length,
      undefined,
      () => this.model.loadCache(path),
    );
    if (!loaded) return;
    assertEquals(loaded.tokens, cache.tokens);
    if (cache.capacity === loaded.capacity) {
      cache.dispose();
      held.cache = loaded;
    } else loaded.dispose();
  }

  /** Calls on several caches at once, with requests beside them, one of which is cut short. */
  async together(picked: number[], tokens: number[], count: number) {
    // What each call finds free is not known while others run.
    if (this.options.pages) return await this.beside(tokens, count);
    const chosen = new Set(picked.map((i) => this.pick(i)));
    const cut = this.model.generate(tokens, { maxTokens: 50, seed: 1 });
    setTimeout(() => cut.return(), count);
    const calls = [...chosen].map((held, i) =>
      held && this.generate(held, tokens.slice(i % tokens.length), 60)
    );
    await Promise.all([...calls, this.beside(tokens, count)]);
    await cut.result();
    for (const held of chosen) if (held) await this.check(held);
  }

  /** Requests without caches of their own, several at once, against one at a time. */
  async beside(tokens: readonly number[], count: number) {
    const { reusePrefix } = this.options;
    const request = (model: Model, i: number) => {
      const prompt = tokens.slice(0, tokens.length - i % tokens.length);
      const options: GenerateOptions = {
        maxTokens: 6,
        temperature: reusePrefix ? 0 : 1,
        logprobs: reusePrefix ? VOCAB : 2,
        seed: i,
        ignoreEos: true,
        reusePrefix,
      };
      const run = () => model.generate(prompt, options).result();
      return model === this.naive
        ? run()
        : this.unlessFull(prompt.length + 6, undefined, run);
    };
    const all = await Promise.all(
      Array.from({ length: count }, (_, i) => request(this.model, i)),
    );
    for (const [i, result] of all.entries()) {
      if (!result) continue;
      const alone = (await request(this.naive, i))!;
      if (result.usage.cachedTokens > 0) Checker.reused++;
      if (reusePrefix) assertClose(result, alone);
      else {
        assertEquals(result.tokens, alone.tokens);
        assertEquals(result.logprobs, alone.logprobs);
      }
    }
  }
}

/** The logits that all log-probabilities of a place tell, up to a constant: of mean 0. */
function centred({ top }: TokenLogprobs): Float64Array {
  const logits = new Float64Array(VOCAB);
  assertEquals(top.length, VOCAB);
  const mean = top.reduce((sum, { logprob }) => sum + logprob, 0) / VOCAB;
  for (const { token, logprob } of top) logits[token] = logprob - mean;
  return logits;
}

/** Logits are the same within rounding, and greedy tokens where one leads by more than that. */
export function assertClose(found: GenerationResult, right: GenerationResult) {
  for (const [i, place] of right.logprobs!.entries()) {
    const other = found.logprobs![i];
    const error = relativeError(centred(other), centred(place));
    assert(error < 1e-5, `logits of token ${i} are off by ${error}`);
    if (other.token === place.token) continue;
    const [first, second] = place.top;
    assert(first.logprob - second.logprob < 1e-3, "another token");
    break;
  }
}
