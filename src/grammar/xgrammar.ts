/**
 * xgrammar in WebAssembly, for grammars in EBNF.
 *
 * The library reports what it cannot do by aborting, which leaves its heap
 * unusable. So grammars are first read by an instance that has nothing to lose;
 * and when the other one breaks nevertheless, it is replaced, and the states in
 * it are made again from their tokens.
 *
 * @module
 */

import { NativeError } from "../errors.ts";
import { GrammarError, refuse } from "./error.ts";
import {
  checkMask,
  checkRollback,
  type CompiledGrammar,
  completeMask,
  type GrammarState,
} from "./state.ts";
import type { Vocabulary } from "./vocabulary.ts";

/** What lies in the heap of an instance until it is deleted. */
interface Handle {
  delete(): void;
}

interface MatcherHandle extends Handle {
  AcceptToken(token: number, verbose: boolean): boolean;
  GetNextTokenBitmask(vocabSize: number): Handle;
  IsTerminated(): boolean;
  Rollback(count: number): void;
}

interface CompilerHandle extends Handle {
  CompileGrammar(grammar: Handle): Handle;
}

/** What `create` of `build/xgrammar.js` returns. */
interface Instance {
  vecStringFromJSArray(list: readonly string[]): Handle;
  vecIntFromJSArray(list: readonly number[]): Handle;
  vecIntToView(list: Handle): Int32Array;
  Grammar: { FromEBNF(ebnf: string, root: string): Handle };
  TokenizerInfo: new (
    vocabulary: Handle,
    type: "BYTE_LEVEL",
    size: number,
    stops: Handle,
    prefixSpace: boolean,
  ) => Handle;
  GrammarCompiler: new (
    info: Handle,
    threads: number,
    cache: boolean,
  ) => CompilerHandle;
  GrammarMatcher: new (
    grammar: Handle,
    stops: undefined,
    terminateWithoutStop: boolean,
    maxRollback: number,
  ) => MatcherHandle;
}

/** What `build/xgrammar.js` exports. */
export interface XgrammarBundle {
  create(log: (line: string) => void): Instance;
}

/** Milliseconds that one mask may take before the grammar is given up. */
const MAX_MASK_MS = 2000;

/**
 * Imports the bundle that `deno task build` makes.
 *
 * @throws {NativeError} When it is missing.
 */
export async function loadXgrammar(
  address: URL = new URL("../../build/xgrammar.js", import.meta.url),
): Promise<XgrammarBundle> {
  try {
    return await import(address.href) as XgrammarBundle;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    throw new NativeError(
      `Cannot open xgrammar: ${address.href} cannot be imported ` +
        "(`deno task build` makes it)",
      { cause: error },
    );
  }
}

/** An instance that holds the vocabulary, and all that lives in its heap. */
class Heap {
  readonly instance: Instance;
  readonly compiler: CompilerHandle;
  /** Deletes what nobody holds any more. */
  readonly #finalizer = new FinalizationRegistry<Handle>((handle) =>
    this.release(handle)
  );
  #broken = false;

  constructor(instance: Instance, vocabulary: Vocabulary) {
    this.instance = instance;
    const texts = instance.vecStringFromJSArray(vocabulary.byteLevel());
    const stops = instance.vecIntFromJSArray(vocabulary.eosTokenIds);
    const info = new instance.TokenizerInfo(
      texts,
      "BYTE_LEVEL",
      vocabulary.size,
      stops,
      false,
    );
    this.compiler = new instance.GrammarCompiler(info, 1, false);
    for (const handle of [texts, stops, info]) handle.delete();
  }

  /** Deletes `handle` when `owner` is gone. */
  own(owner: object, handle: Handle) {
    this.#finalizer.register(owner, handle, owner);
  }

  disown(owner: object) {
    this.#finalizer.unregister(owner);
  }

  release(handle: Handle) {
    if (!this.#broken) handle.delete();
  }

  /** Nothing in it may be touched again. */
  abandon() {
    this.#broken = true;
  }
}

/** xgrammar with one vocabulary. */
export class Xgrammar {
  readonly vocabulary: Vocabulary;
  readonly #bundle: XgrammarBundle;
  #reader: Instance | undefined;
  #heap: Heap | undefined;
  #printed: string[] = [];

  constructor(bundle: XgrammarBundle, vocabulary: Vocabulary) {
    this.#bundle = bundle;
    this.vocabulary = vocabulary;
  }

  #create(): Instance {
    return this.#bundle.create((line) => {
      // Only the first lines tell the reason; a stack trace may follow.
      if (this.#printed.length < 16) this.#printed.push(line);
    });
  }

  /** What the library said, without the place in its own source. */
  #said(): string | undefined {
    const pattern = /\[(?:FATAL|WARNING)\] \S+?:\d+: (.*)/;
    const found = this.#printed.map((line) => pattern.exec(line)?.[1]);
    return found.find((line) => line !== undefined);
  }

  /** The instance that grammars run in. */
  heap(): Heap {
    return this.#heap ??= new Heap(this.#create(), this.vocabulary);
  }

  /**
   * Runs what may abort; then the heap is lost, and the next call makes
   * another.
   */
  run<T>(work: (heap: Heap) => T): T {
    const heap = this.heap();
    try {
      return work(heap);
    } catch (error) {
      heap.abandon();
      if (this.#heap === heap) this.#heap = undefined;
      throw new NativeError(
        `xgrammar aborted: ${this.#said() ?? error}`,
        { cause: error },
      );
    }
  }

  /**
   * Reads a grammar, in an instance of its own.
   *
   * @throws {GrammarError} When it is not well-formed, or draws a warning.
   */
  check(ebnf: string) {
    this.#printed = [];
    try {
      this.#reader ??= this.#create();
      this.#reader.Grammar.FromEBNF(ebnf, "root").delete();
    } catch (error) {
      this.#reader = undefined;
      throw new GrammarError(`is not well-formed: ${this.#said() ?? error}`);
    }
    const warning = this.#said();
    if (warning) throw new GrammarError(`draws a warning: ${warning}`);
  }

  /**
   * Compiles a grammar.
   *
   * @throws {GrammarError} As {@linkcode check} does.
   */
  compile(ebnf: string): CompiledGrammar {
    this.check(ebnf);
    const compiled = new XgrammarGrammar(this, ebnf);
    // It shows here whether there is a first token.
    const state = compiled.start();
    state.mask(new Int32Array(this.vocabulary.words));
    state.dispose();
    return compiled;
  }
}

/** A compiled grammar; it is compiled again when its heap is lost. */
class XgrammarGrammar implements CompiledGrammar {
  readonly owner: Xgrammar;
  readonly #ebnf: string;
  #heap: Heap | undefined;
  #handle: Handle | undefined;

  constructor(owner: Xgrammar, ebnf: string) {
    this.owner = owner;
    this.#ebnf = ebnf;
    owner.run((heap) => this.handle(heap));
  }

  handle(heap: Heap): Handle {
    if (this.#heap !== heap || this.#handle === undefined) {
      const grammar = heap.instance.Grammar.FromEBNF(this.#ebnf, "root");
      this.#handle = heap.compiler.CompileGrammar(grammar);
      this.#heap = heap;
      grammar.delete();
      heap.own(this, this.#handle);
    }
    return this.#handle;
  }

  start(): GrammarState {
    return new XgrammarState(this, []);
  }
}

class XgrammarState implements GrammarState {
  readonly #grammar: XgrammarGrammar;
  readonly #tokens: number[];
  #heap: Heap | undefined;
  #matcher: MatcherHandle | undefined;

  constructor(grammar: XgrammarGrammar, tokens: number[]) {
    this.#grammar = grammar;
    this.#tokens = tokens;
  }

  /** Works on the matcher, which is made again when its heap is lost. */
  #with<T>(work: (matcher: MatcherHandle, instance: Instance) => T): T {
    return this.#grammar.owner.run((heap) => {
      if (this.#heap !== heap || this.#matcher === undefined) {
        const matcher = new heap.instance.GrammarMatcher(
          this.#grammar.handle(heap),
          undefined,
          false,
          -1,
        );
        this.#heap = heap;
        this.#matcher = matcher;
        heap.own(this, matcher);
        for (const token of this.#tokens) matcher.AcceptToken(token, false);
      }
      return work(this.#matcher, heap.instance);
    });
  }

  get terminated(): boolean {
    return this.#with((matcher) => matcher.IsTerminated());
  }

  get complete(): boolean {
    if (this.terminated) return true;
    const { vocabulary } = this.#grammar.owner;
    const [eos] = vocabulary.eosTokenIds;
    const ends = eos !== undefined && this.accept(eos);
    if (ends) this.rollback(1);
    return ends;
  }

  mask(out: Int32Array): boolean {
    const { vocabulary } = this.#grammar.owner;
    const { size } = vocabulary;
    checkMask(out, vocabulary);
    const began = performance.now();
    const ends = this.#with((matcher, instance) => {
      if (matcher.IsTerminated()) {
        out.fill(0);
        return true;
      }
      const bits = matcher.GetNextTokenBitmask(size);
      out.set(instance.vecIntToView(bits));
      bits.delete();
      // Past the end it may set any.
      if (size & 31) out[size >> 5] &= (1 << (size & 31)) - 1;
      return false;
    });
    if (performance.now() - began > MAX_MASK_MS) {
      throw new TypeError(
        "Cannot generate: grammar.ebnf can be read in too many ways",
      );
    }
    try {
      return completeMask(out, vocabulary, ends);
    } catch (error) {
      throw refuse("grammar.ebnf", error);
    }
  }

  accept(token: number): boolean {
    const { vocabulary } = this.#grammar.owner;
    const known = vocabulary.isText(token) ||
      vocabulary.eosTokenIds.includes(token);
    const accepted = known &&
      this.#with((matcher) =>
        !matcher.IsTerminated() && matcher.AcceptToken(token, false)
      );
    if (accepted) this.#tokens.push(token);
    return accepted;
  }

  rollback(count: number) {
    checkRollback(count, this.#tokens.length);
    if (count === 0) return;
    this.#with((matcher) => matcher.Rollback(count));
    this.#tokens.length -= count;
  }

  fork(): GrammarState {
    return new XgrammarState(this.#grammar, [...this.#tokens]);
  }

  dispose() {
    const [heap, matcher] = [this.#heap, this.#matcher];
    this.#heap = this.#matcher = undefined;
    if (!heap || !matcher) return;
    heap.disown(this);
    heap.release(matcher);
  }
}
