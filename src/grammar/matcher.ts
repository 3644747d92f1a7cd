/**
 * Follows an automaton byte by byte, and tells which tokens may come next.
 *
 * Where the automaton can be is a set of positions; each is a state and the
 * states to return to. Sets that were seen are kept with what each class of
 * bytes leads to, so that what is deterministic, and most is, costs one look-up
 * a byte after the first time.
 *
 * @module
 */

import type { Automaton, State } from "./automaton.ts";
import { GrammarError } from "./error.ts";
import type { TokenTrie } from "./token_trie.ts";

/** Positions that one set may have: more means that the grammar is hopelessly ambiguous. */
const MAX_POSITIONS = 20_000;
/** Work that one mask may cost, in positions looked at: about a second. */
const MAX_WORK = 20_000_000;
/** Sets that are remembered, and the bytes of their masks. */
const MAX_SETS = 20_000;
const MAX_MASK_BYTES = 2 ** 23;

/** A state, and where its rule returns to; equal ones are the same object. */
interface Position {
  readonly id: number;
  readonly state: State;
  /** Positions to go on from; null at the end of the whole grammar. */
  readonly parent: Position | null;
}

/** Where the automaton can be. */
export interface PositionSet {
  /** Those from which a byte can be read. */
  readonly positions: readonly Position[];
  /** Whether what was read is complete. */
  readonly accepting: boolean;
  /** For each class of bytes the set that follows: null for none, undefined when not yet known. */
  readonly next: (PositionSet | null | undefined)[];
  /** Which tokens may come, when it has been asked. */
  mask: Int32Array | undefined;
}

/** Follows one grammar. */
export class Matcher {
  /** Where every text begins. */
  readonly start: PositionSet;
  readonly #automaton: Automaton;
  readonly #trie: TokenTrie;
  readonly #words: number;
  readonly #path: (PositionSet | null)[];
  #positions = new Map<number, Position>();
  #sets = new Map<string, PositionSet>();
  #ids = 0;
  #maskBytes = 0;
  #work = 0;

  /**
   * @param automaton The grammar.
   * @param trie The vocabulary.
   * @param words How many 32-bit words a mask has.
   */
  constructor(automaton: Automaton, trie: TokenTrie, words: number) {
    this.#automaton = automaton;
    this.#trie = trie;
    this.#words = words;
    this.#path = new Array(trie.longest + 1).fill(null);
    const seeds = [this.#position(automaton.root.start, null)];
    this.start = this.#close(seeds) as PositionSet;
  }

  /** The set after one more byte, null when it cannot come. */
  step(from: PositionSet, byte: number): PositionSet | null {
    const next = from.next[this.#automaton.classOf[byte]];
    return next === undefined ? this.#step(from, byte) : next;
  }

  #step(from: PositionSet, byte: number): PositionSet | null {
    const seeds: Position[] = [];
    for (const { state, parent } of from.positions) {
      for (const { low, high, to } of state.bytes) {
        if (byte >= low && byte <= high) seeds.push(this.#position(to, parent));
      }
    }
    this.#work += from.positions.length;
    const next = seeds.length === 0 ? null : this.#close(seeds);
    from.next[this.#automaton.classOf[byte]] = next;
    return next;
  }

  #position(state: State, parent: Position | null): Position {
    const key = (parent === null ? 0 : parent.id) * this.#automaton.size +
      state.id;
    let position = this.#positions.get(key);
    if (position === undefined) {
      position = { id: ++this.#ids, state, parent };
      this.#positions.set(key, position);
    }
    return position;
  }

  /** All that is reached from `seeds` without reading. */
  #close(seeds: readonly Position[]): PositionSet {
    const seen = new Set(seeds);
    const positions: Position[] = [];
    let accepting = false;
    for (const position of seen) {
      if (seen.size > MAX_POSITIONS) {
        throw new GrammarError("can be read in too many ways at once");
      }
      const { state, parent } = position;
      if (state.bytes.length > 0) positions.push(position);
      for (const to of state.empty) seen.add(this.#position(to, parent));
      for (const { rule, to } of state.calls) {
        // What has nothing left to do need not be returned to: lists that are
        // written as rules that end with themselves would grow for ever.
        const back = to.ends ? parent : this.#position(to, parent);
        seen.add(this.#position(rule.start, back));
      }
      if (!state.final) continue;
      if (parent === null) accepting = true;
      else seen.add(parent);
    }
    this.#work += seen.size;
    return this.#intern(positions, accepting);
  }

  #intern(positions: Position[], accepting: boolean): PositionSet {
    const key = positions.map(({ id }) => id).sort((a, b) => a - b).join() +
      (accepting ? "!" : "");
    const known = this.#sets.get(key);
    if (known) return known;
    // Those in use are kept by who uses them; they are only no longer found.
    if (this.#sets.size >= MAX_SETS) this.#forget();
    const set: PositionSet = {
      positions,
      accepting,
      next: new Array(this.#automaton.classes).fill(undefined),
      mask: undefined,
    };
    this.#sets.set(key, set);
    return set;
  }

  #forget() {
    for (const set of this.#sets.values()) {
      set.next.fill(undefined);
      set.mask = undefined;
    }
    this.#sets.clear();
    this.#positions.clear();
    this.#maskBytes = 0;
  }

  /**
   * The tokens that may come after `set`: bit `id & 31` of word `id >> 5`.
   *
   * @throws {GrammarError} When it would take too long to find out.
   */
  mask(set: PositionSet): Int32Array {
    if (set.mask) return set.mask;
    const mask = new Int32Array(this.#words);
    this.#work = 0;
    this.#fill(set, mask);
    this.#maskBytes += mask.byteLength;
    if (this.#maskBytes > MAX_MASK_BYTES) {
      for (const other of this.#sets.values()) other.mask = undefined;
      this.#maskBytes = mask.byteLength;
    }
    set.mask = mask;
    return mask;
  }

  #fill(set: PositionSet, mask: Int32Array) {
    const { byte, depth, skip, token, alike } = this.#trie;
    const { classOf } = this.#automaton;
    const path = this.#path;
    const end = byte.length;
    path[0] = set;
    for (let node = 0; node < end;) {
      const at = depth[node];
      const from = path[at] as PositionSet;
      let next = from.next[classOf[byte[node]]];
      if (next === undefined) {
        if (this.#work > MAX_WORK) {
          throw new GrammarError("can be read in too many ways");
        }
        next = this.#step(from, byte[node]);
      }
      if (next === null) {
        node = skip[node];
        continue;
      }
      for (let id = token[node]; id >= 0; id = alike[id]) {
        mask[id >> 5] |= 1 << (id & 31);
      }
      path[at + 1] = next;
      node++;
    }
  }
}
