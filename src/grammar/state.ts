/**
 * The progress of one output through a grammar.
 *
 * @module
 */

import { GrammarError, refuse } from "./error.ts";
import type { Matcher, PositionSet } from "./matcher.ts";
import type { Vocabulary } from "./vocabulary.ts";

/** Where one output is in its grammar. */
export interface GrammarState {
  /**
   * Writes which tokens may come next.
   *
   * @param out `ceil(vocab_size / 32)` words; bit `id & 31` of word `id >> 5`
   * is set where the token is allowed. All are written.
   * @returns Whether any token is forbidden; else no mask is needed.
   * @throws {TypeError} When it would take too long, as few grammars do that
   * can be read in very many ways at once.
   */
  mask(out: Int32Array): boolean;
  /** Goes on by one token, or stays and returns false when it may not come. */
  accept(token: number): boolean;
  /** Whether an EOS has been accepted: no token may follow. */
  readonly terminated: boolean;
  /** Whether the output is complete, so that an EOS may come. */
  readonly complete: boolean;
  /** Takes back the last `count` tokens that were accepted. */
  rollback(count: number): void;
  /** A copy that goes its own way. */
  fork(): GrammarState;
  /** Gives back what it holds. */
  dispose(): void;
}

/** A grammar that is ready for use. */
export interface CompiledGrammar {
  /** The state of an output that has not begun. */
  start(): GrammarState;
}

/**
 * Completes a mask by the EOS tokens.
 *
 * @param end Whether the output may end.
 * @returns Whether any token is left out.
 * @throws {GrammarError} When all are.
 */
export function completeMask(
  out: Int32Array,
  { size, eosTokenIds }: Vocabulary,
  end: boolean,
): boolean {
  if (end) { for (const id of eosTokenIds) out[id >> 5] |= 1 << (id & 31); }
  if (!out.some((word) => word !== 0)) {
    throw new GrammarError(
      "cannot be continued by any token of the vocabulary",
    );
  }
  const full = size >> 5;
  const last = ((1 << (size & 31)) - 1) | 0;
  return out.some((word, i) => word !== (i < full ? -1 : last));
}

/** Throws unless a mask has the length that it must have. */
export function checkMask(out: Int32Array, { words }: Vocabulary) {
  if (out.length === words) return;
  throw new RangeError(
    `The mask has ${out.length} words, and must have ${words}`,
  );
}

/** Throws unless so many tokens can be taken back. */
export function checkRollback(count: number, accepted: number) {
  if (Number.isInteger(count) && count >= 0 && count <= accepted) return;
  throw new RangeError(
    `Cannot roll back ${count} tokens: ${accepted} were accepted`,
  );
}

/** The state in an automaton of our own. */
export class MatcherState implements GrammarState {
  readonly #matcher: Matcher;
  readonly #vocabulary: Vocabulary;
  readonly #name: string;
  readonly #history: PositionSet[];
  #set: PositionSet;
  #terminated: boolean;

  constructor(
    matcher: Matcher,
    vocabulary: Vocabulary,
    name: string,
    from?: { set: PositionSet; history: PositionSet[]; terminated: boolean },
  ) {
    this.#matcher = matcher;
    this.#vocabulary = vocabulary;
    this.#name = name;
    this.#set = from?.set ?? matcher.start;
    this.#history = from?.history ?? [];
    this.#terminated = from?.terminated ?? false;
  }

  get terminated(): boolean {
    return this.#terminated;
  }

  get complete(): boolean {
    return this.#set.accepting;
  }

  mask(out: Int32Array): boolean {
    checkMask(out, this.#vocabulary);
    try {
      if (this.#terminated) out.fill(0);
      else out.set(this.#matcher.mask(this.#set));
      return completeMask(out, this.#vocabulary, this.#set.accepting);
    } catch (error) {
      throw refuse(this.#name, error);
    }
  }

  accept(token: number): boolean {
    if (this.#terminated) return false;
    const ends = this.#vocabulary.eosTokenIds.includes(token);
    const next = ends ? this.#set : this.#read(token);
    if (next === null || ends && !this.#set.accepting) return false;
    this.#history.push(this.#set);
    this.#set = next;
    this.#terminated = ends;
    return true;
  }

  #read(token: number): PositionSet | null {
    const bytes = this.#vocabulary.bytes(token);
    let set: PositionSet | null = bytes.length > 0 ? this.#set : null;
    for (let i = 0; set !== null && i < bytes.length; i++) {
      try {
        set = this.#matcher.step(set, bytes[i]);
      } catch (error) {
        throw refuse(this.#name, error);
      }
    }
    return set;
  }

  rollback(count: number) {
    checkRollback(count, this.#history.length);
    if (count === 0) return;
    const at = this.#history.length - count;
    this.#set = this.#history[at];
    this.#history.length = at;
    this.#terminated = false;
  }

  fork(): GrammarState {
    return new MatcherState(this.#matcher, this.#vocabulary, this.#name, {
      set: this.#set,
      history: [...this.#history],
      terminated: this.#terminated,
    });
  }

  dispose() {}
}
