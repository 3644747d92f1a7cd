import {
  CancelledError,
  ControlWord,
  type NativeModel,
  newControl,
} from "../../ffi/mod.ts";
import { OutOfMemoryError } from "../errors.ts";
import { assemble, type Assembled, type Part } from "./step.ts";
import type { Draw, Task } from "./task.ts";

/** Sequences that decode together at most. */
export const DECODE_ROWS = 256;
/** Logits rows that exist at once, at least. */
export const LOGITS_ROWS = 64;

/** Rows that suit a kind of device. */
export interface StepLimits {
  /** Of a step at most: the program's size. */
  mixed: number;
  /** Of a step that others decode in: a long prompt must not keep them waiting. */
  shared: number;
  /** Logits rows that exist at once. */
  logits: number;
}

export const CPU_LIMITS: StepLimits = {
  mixed: 512,
  shared: 128,
  logits: LOGITS_ROWS,
};
/** A GPU needs thousands of rows to be busy, and is done with them as soon. */
export const CUDA_LIMITS: StepLimits = {
  mixed: 4096,
  shared: 1024,
  logits: 256,
};

/** Steps that one call runs at most: new requests wait no longer than one of them. */
const MAX_STEPS = 64;

/** The engine's view of a loaded model. */
export interface EngineOptions {
  native: NativeModel;
  programs: { decode: number; mixed: number };
  vocab_size: number;
  maxBatch: number;
  limits: StepLimits;
}

/**
 * Runs the tasks of a model, all that fit in each step: those that decode get a row each, the rest
 * of the step's rows goes to prompts in order of arrival, so that a long one stalls nobody.
 */
export class Engine {
  readonly #options: EngineOptions;
  readonly #waiting: Task[] = [];
  readonly #active: Task[] = [];
  #control = newControl();
  #submitted = 0;
  #running: readonly Task[] = [];
  #loop: Promise<void> | undefined;

  constructor(options: EngineOptions) {
    this.#options = options;
  }

  /** Requests in steps, and those that wait for a place. */
  get load(): { running: number; waiting: number } {
    return { running: this.#active.length, waiting: this.#waiting.length };
  }

  /** Takes a task; it starts with the next step. */
  submit(task: Task) {
    task.queuedAt = performance.now();
    task.order = ++this.#submitted;
    this.#waiting.push(task);
    // Steps that run for others end after the one at hand, so that this one can join.
    Atomics.store(this.#control, ControlWord.yield, 1);
    this.#loop ??= this.#run();
  }

  /** Ends a task within one step, within a long step between two operations. */
  cancel(task: Task, reason: unknown) {
    if (task.cancelled) return;
    task.cancelled = true;
    if (this.#running.includes(task)) {
      const decoding = this.#running.every((other) => other.left === 1);
      const word = decoding ? ControlWord.yield : ControlWord.cancel;
      Atomics.store(this.#control, word, 1);
      this.#reasons.set(task, reason);
    } else {
      this.#drop(task);
      task.fail(reason);
    }
  }
  readonly #reasons = new WeakMap<Task, unknown>();

  /** Cancels everything and waits until nothing runs. */
  async close(reason: unknown): Promise<void> {
    for (const task of [...this.#waiting, ...this.#active]) {
      this.cancel(task, reason);
    }
    await this.#loop;
  }

  #drop(task: Task) {
    for (const list of [this.#waiting, this.#active]) {
      const at = list.indexOf(task);
      if (at >= 0) list.splice(at, 1);
    }
  }

  #end(task: Task, error?: unknown) {
    this.#drop(task);
    if (error === undefined) task.complete();
    else task.fail(error);
  }

  async #run() {
    // Calls made in the same turn share the first step.
    await undefined;
    try {
      while (this.#admit()) {
        const { parts, steps } = this.#plan();
        if (parts.length > 0) await this.#step(parts, steps);
      }
    } catch (error) {
      // A mistake of ours: no call may wait for ever because of it.
      for (const task of [...this.#waiting, ...this.#active]) {
        this.#end(task, error);
      }
    }
    this.#loop = undefined;
  }

  /** Moves waiting tasks in, in order of call; whether there is anything to do. */
  #admit(): boolean {
    for (const task of this.#active.slice()) {
      if (task.left === 0) this.#end(task);
    }
    while (
      this.#waiting.length > 0 && this.#active.length < this.#options.maxBatch
    ) {
      const [task] = this.#waiting;
      const { timeline } = task;
      // Not before its prompt fits: it would only push others out.
      const pages = timeline.pagesNeeded(timeline.length + task.left + 1);
      if (this.#active.length > 0 && pages > timeline.pool.available) break;
      this.#waiting.shift();
      task.startedAt ||= performance.now();
      this.#active.push(task);
    }
    return this.#active.length > 0;
  }

  /** Chooses the rows of the next call. */
  #plan(): { parts: Part[]; steps: number } {
    const steps = this.#stepsTogether();
    const parts: Part[] = [];
    const decoding = this.#active.filter((task) => task.drawsLeft > 0);
    const others = this.#active.filter((task) => task.drawsLeft === 0);
    const { limits } = this.#options;
    let rows = decoding.length > 0 && others.length > 0
      ? Math.max(limits.shared, decoding.length + 1)
      : limits.mixed;
    const blocked: { task: Task; error: OutOfMemoryError }[] = [];
    for (const task of [...decoding, ...others]) {
      if (!this.#active.includes(task)) continue; // suspended meanwhile
      const count = Math.min(task.left, task.maxChunk, rows);
      if (count === 0) break;
      const error = this.#reserve(task, count + steps - 1, parts);
      if (error === undefined) {
        parts.push({ task, rows: count });
        rows -= count;
      } else if (this.#active.includes(task)) {
        blocked.push({ task, error });
      }
    }
    // Whoever is left holds caches of users, which are never taken: no waiting would help.
    const [youngest] = blocked.sort((a, b) => b.task.order - a.task.order);
    if (parts.length === 0 && youngest) {
      this.#end(youngest.task, youngest.error);
    }
    return { parts, steps };
  }

  /**
   * Makes room for `count` tokens more. When pages run out the youngest requests that are not yet
   * part of the step are put back, to be resumed later; a request that finds no room even then is
   * put back itself.
   *
   * @returns the error when there is no room
   */
  #reserve(
    task: Task,
    count: number,
    parts: readonly Part[],
  ): OutOfMemoryError | undefined {
    for (;;) {
      try {
        task.timeline.reserve(task.timeline.length + count);
        return undefined;
      } catch (error) {
        if (!(error instanceof OutOfMemoryError)) throw error;
        const victim = this.#youngest(task, parts);
        if (!victim) {
          const others = this.#active.length > 1;
          if (task.suspendable && others) this.#suspend(task);
          return error;
        }
        this.#suspend(victim);
      }
    }
  }

  /** The youngest task with pages to give, other than `task` and those in the step already. */
  #youngest(task: Task, parts: readonly Part[]): Task | undefined {
    const planned = new Set(parts.map((part) => part.task));
    const candidates = this.#active.filter((other) =>
      other !== task && other.suspendable && !planned.has(other) &&
      other.timeline.pages.length > 0 &&
      // An older request is never put back for a younger one; for a user's cache anybody is.
      (other.order > task.order || !task.suspendable)
    );
    return candidates.sort((a, b) => b.order - a.order)[0];
  }

  #suspend(task: Task) {
    this.#drop(task);
    task.suspend();
    const at = this.#waiting.findIndex((other) => other.order > task.order);
    this.#waiting.splice(at < 0 ? this.#waiting.length : at, 0, task);
  }

  /** How many steps one call may run: more than one only while all decode and nobody waits. */
  #stepsTogether(): number {
    if (this.#waiting.length > 0 || this.#active.length > DECODE_ROWS) return 1;
    let steps = MAX_STEPS;
    let pages = 0;
    for (const task of this.#active) {
      steps = Math.min(steps, task.drawsLeft);
      if (steps <= 1) return 1;
    }
    for (const { timeline } of this.#active) {
      pages += timeline.pagesNeeded(timeline.length + steps);
    }
    const { pool } = this.#active[0].timeline;
    return pages <= pool.available ? steps : 1;
  }

  async #step(parts: readonly Part[], steps: number) {
    const { native, programs, vocab_size } = this.#options;
    const step = assemble(parts, steps, vocab_size);
    const decode = parts.length === step.tokens.length &&
      step.absorbed === parts.length && parts.length <= DECODE_ROWS;
    this.#control.fill(0);
    this.#running = parts.map(({ task }) => task);
    const tracker = new DrawTracker(step, this.#control);
    let error: unknown;
    try {
      const run = native.run({
        program: decode ? programs.decode : programs.mixed,
        control: this.#control,
        ...step,
      });
      if (step.masksFollow) {
        step.fillMasks();
        Atomics.store(this.#control, ControlWord.masks, 1);
      }
      if (steps > 1) await follow(native, this.#control, run, tracker);
      else await run;
    } catch (thrown) {
      error = thrown;
    }
    tracker.read();
    this.#running = [];
    this.#settle(step, tracker, error);
  }

  /** Moves the tasks of a step on by what it computed. */
  #settle(step: Assembled, tracker: DrawTracker, error: unknown) {
    const completed = this.#control[ControlWord.steps];
    for (const [i, { task, rows }] of step.parts.entries()) {
      const draws = tracker.draws[i];
      if (task.drawsLeft > 0 || draws.length > 0) {
        this.#advanceDecoding(task, rows, draws, completed);
      } else if (completed > 0) {
        task.receive(step.resultOf(i), task.computed);
        task.timeline.append(
          task.pending.slice(task.computed, task.computed + rows),
        );
        task.computed += rows;
        task.settle();
      }
      if (task.cancelled) {
        this.#end(task, this.#reasons.get(task));
      } else if (error !== undefined && !(error instanceof CancelledError)) {
        this.#end(task, error);
      } else if (task.left === 0) {
        this.#end(task);
      }
    }
  }

  /** The fed tokens of a task that draws: what was pending, then all draws but the last. */
  #advanceDecoding(
    task: Task,
    rows: number,
    draws: readonly TrackedDraw[],
    completed: number,
  ) {
    if (completed === 0) return;
    const fed = task.pending.slice(task.computed, task.computed + rows);
    const kept = draws.filter((draw) => draw.accepted);
    fed.push(...kept.slice(0, -1).map((draw) => draw.token));
    const last = kept[kept.length - 1];
    // A draw beyond the last accepted one means that the accepted one was fed, too.
    if (last && draws.length > kept.length) fed.push(last.token);
    task.timeline.append(fed);
    task.computed += rows;
    if (last && draws.length === kept.length) task.pending.push(last.token);
    task.pending = task.pending.slice(task.computed);
    task.computed = 0;
    task.settle();
  }
}

interface TrackedDraw extends Draw {
  /** Whether the task took it: what is drawn after the last token it wants is not. */
  accepted: boolean;
}

/** Hands drawn tokens to their tasks as they appear in the shared entries. */
class DrawTracker {
  /** For each part of the step. */
  readonly draws: TrackedDraw[][];
  readonly #step: Assembled;
  readonly #control: Int32Array<SharedArrayBuffer>;
  readonly #wants: boolean[];
  #seen = 0;

  constructor(step: Assembled, control: Int32Array<SharedArrayBuffer>) {
    this.#step = step;
    this.#control = control;
    this.draws = step.parts.map(() => []);
    this.#wants = step.parts.map(() => true);
  }

  get seen(): number {
    return this.#seen;
  }

  read() {
    const count = Atomics.load(this.#control, ControlWord.count);
    for (; this.#seen < count; this.#seen++) {
      const { part, draw } = this.#step.entry(this.#seen);
      if (part === undefined) continue;
      const { task } = this.#step.parts[part];
      const accepted = this.#wants[part] && !task.cancelled;
      this.draws[part].push({ ...draw, accepted });
      if (!accepted) continue;
      this.#wants[part] = task.accept(draw);
      // The others go on without it from the next step.
      if (!this.#wants[part]) {
        Atomics.store(this.#control, ControlWord.yield, 1);
      }
    }
  }
}

/** Reads draws while the call runs, until it has ended. */
async function follow(
  native: NativeModel,
  control: Int32Array<SharedArrayBuffer>,
  run: Promise<void>,
  tracker: DrawTracker,
) {
  let ended = false;
  const end = run.finally(() => ended = true);
  end.catch(() => {});
  while (!ended && Atomics.load(control, ControlWord.done) === 0) {
    await native.wait(control, tracker.seen, 1000);
    tracker.read();
  }
  await end;
}
