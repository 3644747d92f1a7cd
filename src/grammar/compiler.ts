/**
 * Grammars made ready for a model's vocabulary.
 *
 * @module
 */

import type { Tokenizer } from "../text/tokenizer.ts";
import { buildAutomaton } from "./automaton.ts";
import { refuse } from "./error.ts";
import { type Grammar, parseGrammar } from "./grammar.ts";
import type { Rule } from "./expr.ts";
import { Matcher } from "./matcher.ts";
import { type CompiledGrammar, MatcherState } from "./state.ts";
import { Vocabulary } from "./vocabulary.ts";
import { loadXgrammar, Xgrammar } from "./xgrammar.ts";

/** Compiled grammars that are kept. */
const MAX_KEPT = 32;

/**
 * Compiles grammars for one model, and keeps those that were used last.
 *
 * JSON schemas, regular expressions and choices run on an automaton of our own,
 * grammars in EBNF on xgrammar.
 *
 * @example
 * ```ts ignore
 * const compiler = await GrammarCompiler.open(tokenizer, 4096, [1]);
 * const state = compiler.compile({ choices: ["yes", "no"] }).start();
 * const mask = new Int32Array(4096 / 32);
 * state.mask(mask); // bit set: the token may come
 * ```
 */
export class GrammarCompiler {
  readonly #vocabulary: Vocabulary;
  readonly #xgrammar: Xgrammar;
  /** By content, the last used last. */
  readonly #kept = new Map<string, CompiledGrammar>();

  private constructor(vocabulary: Vocabulary, xgrammar: Xgrammar) {
    this.#vocabulary = vocabulary;
    this.#xgrammar = xgrammar;
  }

  /**
   * Opens a compiler; what costs time is done at the first grammar.
   *
   * @param tokenizer The model's tokenizer.
   * @param vocabSize `vocab_size` of the model: ids from the tokenizer's size
   * on are never allowed.
   * @param eosTokenIds The tokens that end an output.
   * @throws {NativeError} When xgrammar has not been built.
   */
  static async open(
    tokenizer: Tokenizer,
    vocabSize: number,
    eosTokenIds: readonly number[],
  ): Promise<GrammarCompiler> {
    const vocabulary = new Vocabulary(tokenizer, vocabSize, eosTokenIds);
    const bundle = await loadXgrammar();
    return new GrammarCompiler(vocabulary, new Xgrammar(bundle, vocabulary));
  }

  /** Words of 32 bits that a mask has. */
  get maskWords(): number {
    return this.#vocabulary.words;
  }

  /**
   * Compiles a grammar, unless it is one of those that were used last.
   *
   * @throws {TypeError} When it is not a grammar, or says what cannot be
   * enforced: the message names it, and its place.
   */
  compile(grammar: Grammar): CompiledGrammar {
    const parsed = parseGrammar(grammar);
    let compiled = this.#kept.get(parsed.key);
    this.#kept.delete(parsed.key);
    if (compiled === undefined) {
      try {
        compiled = parsed.kind === "ebnf"
          ? this.#xgrammar.compile(parsed.ebnf)
          : this.#automaton(parsed.rule, parsed.name);
      } catch (error) {
        throw refuse(parsed.name, error);
      }
    }
    this.#kept.set(parsed.key, compiled);
    if (this.#kept.size > MAX_KEPT) {
      const [oldest] = this.#kept.keys();
      this.#kept.delete(oldest);
    }
    return compiled;
  }

  #automaton(rule: Rule, name: string): CompiledGrammar {
    const vocabulary = this.#vocabulary;
    const automaton = buildAutomaton(rule);
    const matcher = new Matcher(automaton, vocabulary.trie, vocabulary.words);
    // It will be needed, and shows here whether it can be had in time.
    matcher.mask(matcher.start);
    return { start: () => new MatcherState(matcher, vocabulary, name) };
  }
}
