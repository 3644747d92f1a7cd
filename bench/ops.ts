/**
 * Where a step's time goes: for each operation, a program of all of the model's operations of that
 * kind and no others, for a token that decodes and for a prompt. The best of the runs counts.
 *
 * Run: deno run -A bench/ops.ts, with the options of `deno task bench`.
 */
import {
  newControl,
  OpKind,
  ProgramRecorder,
  Rows,
  type ValueRef,
} from "../ffi/mod.ts";
import type { Model } from "../mod.ts";
import { printTable, provenance, type Row, writeCsv } from "./report.ts";
import {
  openModel,
  parseSource,
  randomTokens,
  SOURCE_USAGE,
} from "./source.ts";

type Op = ProgramRecorder["ops"][number];

/** A step to take apart. */
interface Step {
  phase: "decode" | "prefill";
  rows: number;
  position: number;
}

const STEPS: readonly Step[] = [
  { phase: "decode", rows: 1, position: 511 },
  { phase: "prefill", rows: 128, position: 0 },
  { phase: "prefill", rows: 512, position: 0 },
];

const KINDS = Object.keys(OpKind) as (keyof typeof OpKind)[];

/** The operation's name; matrices of different use are told apart. */
function label(op: Op): string {
  const name = KINDS[op.kind ?? 0];
  if (name === "linear" && op.rows === Rows.logits) return "linear (lm_head)";
  if (name === "gate_up" && op.in?.[1] === -1) return "gate_up (one for all)";
  return name;
}

/** Operations on paths that a step does not take, and those without a result here. */
function idle(name: string, { phase }: Step): boolean {
  const other = phase === "decode"
    ? ["mla_prefill"]
    : ["mla_absorb", "mla_decode", "mla_expand"];
  return [...other, "logits_out", "logprob", "sample"].includes(name);
}

/** Multiplications and additions of a step's operation on matrices; else 0. */
function flops(op: Op, { rows, position }: Step): number {
  const n = op.n ?? [];
  const own = op.rows === Rows.logits ? 1 : rows;
  const keys = position + (rows + 1) / 2;
  switch (KINDS[op.kind ?? 0]) {
    case "linear":
      return 2 * own * n[0] * n[1];
    case "gate_up":
      return 4 * own * n[0] * n[1] * n[2];
    case "expert_down":
      return 2 * own * n[0] * n[1] * n[2];
    case "mla_absorb":
      return 2 * own * n[0] * n[1] * n[4];
    case "mla_expand":
      return 2 * own * n[0] * n[3] * n[4];
    case "mla_decode":
      return 2 * own * n[1] * keys * (2 * n[2] + n[3]);
    case "mla_prefill":
      return 2 * n[1] * (n[2] + n[4]) * n[5] * (position + rows) +
        2 * own * n[1] * keys * (n[2] + n[3] + n[4]);
    default:
      return 0;
  }
}

/** Runs programs made of a model's operations on a cache of its own. */
class Bench {
  readonly #model: Model;
  readonly #recorded: ProgramRecorder;
  readonly #experts: ValueRef[];
  readonly #pool: number;

  constructor(model: Model) {
    this.#model = model;
    const { recorded, native } = model.inspect();
    this.#recorded = recorded.program;
    this.#experts = recorded.routers.flatMap((router) =>
      router ? [router.experts] : []
    );
    const { num_hidden_layers, kv_lora_rank, qk_rope_head_dim } = model.config;
    using cache = model.createCache();
    this.#pool = native.addPool({
      dtype: cache.type === "f32" ? "f32" : "bf16",
      layers: num_hidden_layers,
      kv_lora_rank,
      qk_rope_head_dim,
      max_pages: 8,
    });
  }

  /** The operations that a step has, by label. */
  kinds(step: Step): Map<string, Op[]> {
    const busy = this.#recorded.ops.filter((op) => !idle(label(op), step));
    return Map.groupBy(busy, label);
  }

  /** `[rows, k]` experts, those of a row distinct, the same for the same layer. */
  #choose(k: number, rows: number, layer: number): Int32Array<ArrayBuffer> {
    const { n_routed_experts } = this.#model.config;
    const first = randomTokens(rows, n_routed_experts, layer);
    return Int32Array.from(
      { length: rows * k },
      (_, slot) => (first[Math.floor(slot / k)] + slot % k) % n_routed_experts,
    );
  }

  /** Milliseconds of a step of these operations. */
  async time(ops: readonly Op[], step: Step, runs: number): Promise<number> {
    const { native } = this.#model.inspect();
    const { vocab_size } = this.#model.config;
    const { rows, position } = step;
    const projected = ops.some((op) => op.kind === OpKind.mla_prefill);
    const program = new ProgramRecorder();
    const chosen = new Set(this.#experts.map(({ id }) => id));
    program.values.push(
      ...this.#recorded.values.map((value, id) => ({
        ...value,
        keep: chosen.has(id) ? 1 : 0,
      })),
    );
    // Experts of their own need a plan, and a plan without a router needs a choice.
    const plans = this.#recorded.ops.filter((op) =>
      op.kind === OpKind.moe_plan && !ops.includes(op)
    );
    const planned = plans.filter((plan) =>
      ops.some((op) => op.in?.includes(plan.out?.[0] ?? -1))
    );
    program.ops.push(...planned, ...ops);
    const id = native.addProgram(program, rows, 1);
    if (!ops.some((op) => op.kind === OpKind.router)) {
      for (const [layer, value] of this.#experts.entries()) {
        native.writeValue(id, value, this.#choose(value.cols, rows, layer));
      }
    }
    let best = Infinity;
    for (let run = 0; run <= runs; run++) {
      const started = performance.now();
      await native.run({
        program: id,
        tokens: Int32Array.from(randomTokens(rows, vocab_size, run)),
        // Without attention either path does.
        absorbed: projected ? 0 : rows,
        segments: [{
          row: 0,
          rows,
          position,
          pool: this.#pool,
          page: 0,
          n_pages: 8,
        }],
        pages: Int32Array.from({ length: 8 }, (_, page) => page),
        logitRows: Int32Array.of(rows - 1),
        control: newControl(),
      });
      if (run > 0) best = Math.min(best, performance.now() - started);
    }
    return best;
  }
}

async function main() {
  const options = parseSource(Deno.args);
  if (!options) return console.log(`Usage: ops.ts [options]\n${SOURCE_USAGE}`);
  const { model, shape } = await openModel(options);
  await using _ = model;
  const { device, weightsType } = model.inspect();
  const info = device.info();
  const where = await provenance();
  const bench = new Bench(model);
  const rows: Row[] = [];
  for (const step of STEPS) {
    const kinds = bench.kinds(step);
    const all = [...kinds.values()].flat();
    const inOrder = model.inspect().recorded.program.ops.filter((op) =>
      all.includes(op)
    );
    const parts = new Map([["all", inOrder], ...kinds]);
    let whole = 0;
    for (const [name, ops] of parts) {
      const ms = await bench.time(ops, step, options.runs);
      whole ||= ms;
      const work = ops.reduce((sum, op) => sum + flops(op, step), 0);
      rows.push({
        machine: where.machine,
        cpu: info.name,
        kernels: info.kernels,
        threads: info.threads,
        commit: where.commit,
        build: device.library.buildId,
        shape,
        layers: model.config.num_hidden_layers,
        weights: weightsType,
        phase: step.phase,
        tokens: step.rows,
        context: step.position,
        operation: name,
        count: ops.length,
        milliseconds: ms.toPrecision(4),
        share: (ms / whole).toFixed(3),
        gflop_per_second: (work / ms / 1e6).toPrecision(3),
      });
    }
  }
  printTable(rows, [
    "phase",
    "tokens",
    "operation",
    "count",
    "milliseconds",
    "share",
    "gflop_per_second",
  ]);
  const { layers } = rows[0];
  const name = options.name ?? `ops-${shape}-${layers}-${weightsType}`;
  console.log(await writeCsv(name, rows));
}

try {
  await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  Deno.exit(1);
}
