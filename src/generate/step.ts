import {
  type NativeStep,
  type SamplingValues,
  type SegmentValues,
} from "../../ffi/mod.ts";
import type { Draw, RowRequest, RowResult, Task } from "./task.ts";

/** A task and how many of its pending tokens the step computes. */
export interface Part {
  task: Task;
  rows: number;
}

/** The arguments of a step, and the way back from its results to its tasks. */
export interface Assembled extends Omit<NativeStep, "program" | "control"> {
  /** In order of rows: the absorbed path first. */
  parts: readonly Part[];
  /** What part `i` asked for. */
  resultOf(i: number): RowResult;
  /** Computes the masks of the draws, each into its place; the step waits for them. */
  fillMasks(): void;
  /** The entry at `index`: whose draw, and what. `part` is undefined for rows that draw nothing. */
  entry(index: number): { part: number | undefined; draw: Draw };
}

/** Stands for rows that want logits but no draw. */
const NO_DRAW: SamplingValues = {
  top_p: 1,
  typical_p: 1,
  repetition_penalty: 1,
  mask: -1,
  top_logprobs: -1,
};

/** Lays the parts of a step out in the buffers of `moela_model_run`. */
export function assemble(
  given: readonly Part[],
  steps: number,
  vocab_size: number,
): Assembled {
  const parts = [
    ...given.filter(({ task }) => task.path === "absorbed"),
    ...given.filter(({ task }) => task.path === "projected"),
  ];
  const requests = parts.map(({ task, rows }) => task.request(rows));
  const { tokens, segments, pages, absorbed } = layOutRows(parts);
  const rows: number[] = [];
  const owners: number[] = [];
  requests.forEach((request, i) => {
    for (const row of request.logitRows) {
      rows.push(segments[i].row + row);
      owners.push(i);
    }
  });
  const draws = requests.some((request) => request.sampling);
  const { sampling, aux, masks } = draws
    ? layOutSampling(requests, vocab_size)
    : { sampling: undefined, aux: undefined, masks: [] };
  const top = Math.max(0, ...(sampling ?? []).map((s) => s.top_logprobs ?? 0));
  const entryWords = 4 + 2 * top;
  const entries = draws
    ? new Int32Array(
      new SharedArrayBuffer(4 * steps * rows.length * entryWords),
    )
    : undefined;
  const wantsTargets = requests.some((request) => request.targets);
  const targets = wantsTargets
    ? Int32Array.from(
      requests.flatMap((request) =>
        request.targets ?? request.logitRows.map(() => -1)
      ),
    )
    : undefined;
  const logprobs = wantsTargets ? new Float32Array(rows.length) : undefined;
  const logits = requests.some((request) => request.logits)
    ? new Float32Array(rows.length * vocab_size)
    : undefined;
  const firstOf = (part: number) => owners.indexOf(part);

  return {
    parts,
    tokens,
    absorbed,
    segments,
    pages,
    logitRows: Int32Array.from(rows),
    targets,
    sampling,
    aux,
    logits,
    logprobs,
    entries,
    entryWords,
    steps,
    masksFollow: masks.length > 0,
    fillMasks() {
      for (const { at, fill } of masks) {
        fill((aux as Int32Array).subarray(at, at + maskWords(vocab_size)));
      }
    },
    resultOf(i) {
      const count = requests[i].logitRows.length;
      const first = firstOf(i);
      return {
        logits: requests[i].logits && count > 0
          ? logits?.subarray(first * vocab_size, (first + count) * vocab_size)
          : undefined,
        logprobs: count > 0
          ? logprobs?.subarray(first, first + count)
          : undefined,
      };
    },
    entry(index) {
      const at = index * entryWords;
      const words = entries as Int32Array<SharedArrayBuffer>;
      const part = owners[words[at]];
      const wanted = requests[part].sampling?.values.top_logprobs ?? -1;
      const row = rows[words[at]] - segments[part].row;
      const drawing = requests[part].sampling &&
        row === requests[part].logitRows[requests[part].logitRows.length - 1];
      return {
        part: drawing ? part : undefined,
        draw: readDraw(words, at, Math.max(wanted, 0)),
      };
    },
  };
}

function layOutRows(parts: readonly Part[]) {
  const tokens: number[] = [];
  const pages: number[] = [];
  const segments: SegmentValues[] = [];
  let absorbed = 0;
  for (const { task, rows } of parts) {
    const { timeline, pending, computed } = task;
    segments.push({
      row: tokens.length,
      rows,
      position: timeline.length,
      pool: timeline.pool.id,
      page: pages.length,
      n_pages: timeline.pages.length,
    });
    for (let i = 0; i < rows; i++) tokens.push(pending[computed + i]);
    pages.push(...timeline.pages);
    if (task.path === "absorbed") absorbed = tokens.length;
  }
  return {
    tokens: Int32Array.from(tokens),
    pages: Int32Array.from(pages),
    segments,
    absorbed,
  };
}

const floatBits = (() => {
  const float = new Float32Array(1);
  const bits = new Int32Array(float.buffer);
  return {
    of(value: number): number {
      float[0] = value;
      return bits[0];
    },
    from(value: number): number {
      bits[0] = value;
      return float[0];
    },
  };
})();

const maskWords = (vocab_size: number) => Math.ceil(vocab_size / 32);

function layOutSampling(
  requests: readonly RowRequest[],
  vocab_size: number,
) {
  const aux: number[] = [];
  const masks: { at: number; fill: (words: Int32Array) => void }[] = [];
  const sampling: SamplingValues[] = [];
  requests.forEach((request, part) => {
    request.logitRows.forEach((_, i) => {
      const draw = i === request.logitRows.length - 1 && request.sampling;
      if (!draw) {
        sampling.push({ ...NO_DRAW, segment: part });
        return;
      }
      const { prompt, output } = draw.history;
      const history = aux.length;
      for (const token of prompt) aux.push(token);
      for (const token of output) aux.push(token);
      const bias = aux.length;
      for (const [token, value] of draw.bias) {
        aux.push(token, floatBits.of(value));
      }
      const stop = aux.length;
      aux.push(...draw.stop);
      const mask = draw.mask ? aux.length : -1;
      if (draw.mask) {
        masks.push({ at: mask, fill: draw.mask });
        for (let i = maskWords(vocab_size); i > 0; i--) aux.push(0);
      }
      sampling.push({
        ...draw.values,
        mask,
        history,
        n_prompt: prompt.length,
        n_output: output.length,
        bias,
        n_bias: draw.bias.length,
        stop,
        n_stop: draw.stop.length,
        segment: part,
      });
    });
  });
  return { sampling, aux: Int32Array.from(aux), masks };
}

function readDraw(
  words: Int32Array<SharedArrayBuffer>,
  at: number,
  top: number,
): Draw {
  const pair = (offset: number) => ({
    token: words[at + offset],
    logprob: floatBits.from(words[at + offset + 1]),
  });
  return {
    token: words[at + 1],
    logprob: floatBits.from(words[at + 2]),
    stop: words[at + 3] !== 0,
    top: Array.from({ length: top }, (_, i) => pair(4 + 2 * i)),
  };
}
