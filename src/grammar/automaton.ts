/**
 * An expression over bytes as a recursive transition network: one
 * nondeterministic automaton for each rule, which may call others.
 *
 * @module
 */

import { GrammarError } from "./error.ts";
import type { ByteRange, Expr, Rule } from "./expr.ts";

/** States of one grammar at most; it bounds time and memory. */
export const MAX_STATES = 200_000;

/** A state of the network. */
export interface State {
  readonly id: number;
  /** Reading one byte of `[low, high]` leads to `to`. */
  readonly bytes: { readonly low: number; readonly high: number; to: State }[];
  /** Without reading. */
  readonly empty: State[];
  /** `start` of a rule is read to its end, then `to` follows. */
  readonly calls: { readonly rule: Network; to: State }[];
  /** The end of its rule. */
  final: boolean;
  /** Nothing but the end of its rule can follow. */
  ends: boolean;
}

/** The automaton of one rule. */
export interface Network {
  readonly name: string;
  readonly start: State;
}

/** A whole grammar. */
export interface Automaton {
  readonly root: Network;
  /** How many states there are; their ids are below it. */
  readonly size: number;
  /** For each byte the class of bytes that no edge tells apart. */
  readonly classOf: Uint8Array;
  /** How many classes there are. */
  readonly classes: number;
}

class Builder {
  readonly states: State[] = [];
  readonly #networks = new Map<Rule, Network>();
  readonly #pending: [Rule, Network][] = [];

  state(): State {
    if (this.states.length >= MAX_STATES) {
      throw new GrammarError(
        `needs more than ${MAX_STATES} states: its counts are too large`,
      );
    }
    const state: State = {
      id: this.states.length,
      bytes: [],
      empty: [],
      calls: [],
      final: false,
      ends: false,
    };
    this.states.push(state);
    return state;
  }

  network(rule: Rule): Network {
    let network = this.#networks.get(rule);
    if (network === undefined) {
      network = { name: rule.name, start: this.state() };
      this.#networks.set(rule, network);
      this.#pending.push([rule, network]);
    }
    return network;
  }

  build(root: Rule): Network {
    const network = this.network(root);
    // Not recursive over rules: their depth is not bounded.
    for (let next = this.#pending.pop(); next; next = this.#pending.pop()) {
      const [rule, { start }] = next;
      this.#add(rule.body, start).final = true;
    }
    return network;
  }

  /** Adds an expression after `from`; returns the state after it. */
  #add(expr: Expr, from: State): State {
    switch (expr.kind) {
      case "byte": {
        const to = this.state();
        this.#bytes(from, to, expr.ranges);
        return to;
      }
      case "sequence":
        return expr.items.reduce((at, item) => this.#add(item, at), from);
      case "either": {
        const to = this.state();
        for (const item of expr.items) {
          const start = this.state();
          from.empty.push(start);
          this.#add(item, start).empty.push(to);
        }
        return to;
      }
      case "repeat":
        return this.#repeat(expr.item, expr.min, expr.max, from);
      case "literals":
        return this.#literals(expr.texts, from);
      case "rule": {
        const to = this.state();
        from.calls.push({ rule: this.network(expr.rule), to });
        return to;
      }
    }
  }

  #bytes(from: State, to: State, ranges: readonly ByteRange[]) {
    for (const [low, high] of ranges) from.bytes.push({ low, high, to });
  }

  #repeat(item: Expr, min: number, max: number, from: State): State {
    let at = from;
    for (let i = 0; i < min; i++) at = this.#add(item, at);
    if (max === Infinity) {
      const loop = this.state();
      at.empty.push(loop);
      this.#add(item, loop).empty.push(loop);
      return loop;
    }
    const to = this.state();
    for (let i = min; i < max; i++) {
      at.empty.push(to);
      // A state of its own, so that what comes back to `at` does not go on.
      const start = this.state();
      at.empty.push(start);
      at = this.#add(item, start);
    }
    at.empty.push(to);
    return to;
  }

  /** A tree of the texts' bytes: they may be many. */
  #literals(texts: readonly Uint8Array[], from: State): State {
    const to = this.state();
    if (texts.length === 1) {
      let at = from;
      for (const value of texts[0]) {
        const next = this.state();
        at.bytes.push({ low: value, high: value, to: next });
        at = next;
      }
      at.empty.push(to);
      return to;
    }
    const start = this.state();
    from.empty.push(start);
    const children = new Map<State, Map<number, State>>();
    for (const bytes of texts) {
      let at = start;
      for (const value of bytes) {
        let known = children.get(at);
        if (known === undefined) children.set(at, known = new Map());
        let next = known.get(value);
        if (next === undefined) {
          known.set(value, next = this.state());
          at.bytes.push({ low: value, high: value, to: next });
        }
        at = next;
      }
      if (!at.empty.includes(to)) at.empty.push(to);
    }
    return to;
  }
}

/** For each state those that an edge leads from, rules' beginnings included. */
function predecessors(states: readonly State[]): Map<State, State[]> {
  const before = new Map<State, State[]>();
  const link = (to: State, from: State) => {
    const list = before.get(to);
    if (list) list.push(from);
    else before.set(to, [from]);
  };
  for (const state of states) {
    for (const { to } of state.bytes) link(to, state);
    for (const to of state.empty) link(to, state);
    for (const { rule, to } of state.calls) {
      link(to, state);
      link(rule.start, state);
    }
  }
  return before;
}

/** The states from which the end of their rule is reached, by reading bytes or not. */
function reachEnd(
  states: readonly State[],
  before: ReadonlyMap<State, readonly State[]>,
  reading: boolean,
): Set<State> {
  const found = new Set(states.filter((state) => state.final));
  const reaches = (state: State) =>
    reading && state.bytes.some(({ to }) => found.has(to)) ||
    state.empty.some((to) => found.has(to)) ||
    state.calls.some(({ rule, to }) => found.has(rule.start) && found.has(to));
  const queue = [...found];
  for (let next = queue.pop(); next; next = queue.pop()) {
    for (const state of before.get(next) ?? []) {
      if (found.has(state) || !reaches(state)) continue;
      found.add(state);
      queue.push(state);
    }
  }
  return found;
}

/** Cuts off what never leads to the end: a token must not run into it. */
function trim(states: readonly State[], useful: ReadonlySet<State>) {
  const keep = <T>(list: T[], test: (item: T) => boolean) => {
    const kept = list.filter(test);
    if (kept.length < list.length) list.splice(0, list.length, ...kept);
  };
  for (const state of states) {
    keep(state.bytes, ({ to }) => useful.has(to));
    keep(state.empty, (to) => useful.has(to));
    keep(
      state.calls,
      ({ rule, to }) => useful.has(rule.start) && useful.has(to),
    );
  }
}

/** Throws when a rule can call itself before it has read anything. */
function checkRecursion(
  states: readonly State[],
  root: Network,
  skips: ReadonlySet<State>,
) {
  const firstCalls = (network: Network): Network[] => {
    const seen = new Set([network.start]);
    const calls = new Set<Network>();
    for (const state of seen) {
      for (const to of state.empty) seen.add(to);
      for (const { rule, to } of state.calls) {
        calls.add(rule);
        if (skips.has(rule.start)) seen.add(to);
      }
    }
    return [...calls];
  };
  const done = new Set<Network>();
  const open = new Set<Network>();
  const all: Network[] = [root];
  const known = new Set(all);
  for (const state of states) {
    for (const { rule } of state.calls) {
      if (!known.has(rule)) all.push(rule), known.add(rule);
    }
  }
  for (const first of all) {
    const stack = [{
      network: first,
      calls: undefined as Network[] | undefined,
    }];
    while (stack.length > 0) {
      const top = stack[stack.length - 1];
      if (top.calls === undefined) {
        if (done.has(top.network)) {
          stack.pop();
          continue;
        }
        if (open.has(top.network)) {
          throw new GrammarError(
            `leads from ${top.network.name} back to itself with nothing between`,
          );
        }
        open.add(top.network);
        top.calls = firstCalls(top.network);
      }
      const next = top.calls.pop();
      if (next) stack.push({ network: next, calls: undefined });
      else {
        open.delete(top.network);
        done.add(top.network);
        stack.pop();
      }
    }
  }
}

/** Marks the states after which their rule only ends. */
function markEnds(states: readonly State[]) {
  // Mostly an edge leads to a state that was made later.
  for (let i = states.length - 1; i >= 0; i--) {
    const state = states[i];
    state.ends = state.bytes.length === 0 && state.calls.length === 0 &&
      state.empty.every((to) => to.ends);
  }
  for (const state of states) {
    state.ends ||= state.bytes.length === 0 && state.calls.length === 0 &&
      state.empty.length > 0 && state.empty.every((to) => to.ends);
  }
}

/** Bytes that every edge treats alike share a class. */
function classify(states: readonly State[]) {
  const starts = new Uint8Array(257);
  starts[0] = 1;
  for (const { bytes } of states) {
    for (const { low, high } of bytes) starts[low] = starts[high + 1] = 1;
  }
  const classOf = new Uint8Array(256);
  let last = -1;
  for (let value = 0; value < 256; value++) {
    if (starts[value]) last++;
    classOf[value] = last;
  }
  return { classOf, classes: last + 1 };
}

/**
 * The automaton of a grammar.
 *
 * @throws {GrammarError} When it matches nothing at all, is too large, or has a
 * rule that calls itself before it has read anything.
 */
export function buildAutomaton(root: Rule): Automaton {
  const builder = new Builder();
  const network = builder.build(root);
  const { states } = builder;
  const before = predecessors(states);
  const useful = reachEnd(states, before, true);
  if (!useful.has(network.start)) {
    throw new GrammarError("cannot be satisfied by any text");
  }
  trim(states, useful);
  checkRecursion(states, network, reachEnd(states, before, false));
  markEnds(states);
  return { root: network, size: states.length, ...classify(states) };
}
