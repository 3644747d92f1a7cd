/**
 * Log-probabilities of a prompt's own tokens, for completions that repeat it.
 *
 * @module
 */
import type { TokenLogprob } from "../generate/generation.ts";
import type { Model } from "../model/model.ts";
import type { EchoedToken } from "./completion_writer.ts";

/** Rows of logits that exist at once. */
const ROWS = 32;

/** The `count` largest of a row, in descending order; equals in order of their ids. */
function largest(row: Float32Array, count: number): number[] {
  const ids: number[] = [];
  for (let id = 0; id < row.length; id++) {
    if (ids.length === count && row[id] <= row[ids[count - 1]]) continue;
    let at = ids.length;
    while (at > 0 && row[id] > row[ids[at - 1]]) at--;
    ids.splice(at, 0, id);
    if (ids.length > count) ids.pop();
  }
  return ids;
}

function logSumExp(row: Float32Array): number {
  let max = -Infinity;
  for (const value of row) if (value > max) max = value;
  let sum = 0;
  for (const value of row) sum += Math.exp(value - max);
  return max + Math.log(sum);
}

/**
 * For each token of a prompt its log-probability given those before it, and the most likely ones
 * in its place; the first has none.
 *
 * @param top alternatives of each
 */
export async function promptLogprobs(
  model: Model,
  tokens: readonly number[],
  top: number,
  signal: AbortSignal,
): Promise<EchoedToken[]> {
  const { tokenizer, config: { vocab_size } } = model;
  const describe = (token: number, logprob: number): TokenLogprob => {
    const bytes = tokenizer.bytes(token);
    return { token, text: new TextDecoder().decode(bytes), bytes, logprob };
  };
  const first = describe(tokens[0], NaN);
  const list: EchoedToken[] = [{ ...first, logprob: null, top: [] }];
  await using cache = model.createCache({ capacity: tokens.length });
  for (let at = 0; at + 1 < tokens.length; at += ROWS) {
    const piece = tokens.slice(at, Math.min(at + ROWS, tokens.length - 1));
    const logits = await model.forward(piece, { cache, logits: "all", signal });
    for (let i = 0; i < piece.length; i++) {
      const row = logits.subarray(i * vocab_size, (i + 1) * vocab_size);
      const sum = logSumExp(row);
      const token = tokens[at + i + 1];
      list.push({
        ...describe(token, row[token] - sum),
        top: largest(row, top).map((id) => describe(id, row[id] - sum)),
      });
    }
  }
  return list;
}
