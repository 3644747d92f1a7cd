/** Random calls on the caches of a model, for properties. */
import fc from "fast-check";
import { Random } from "./numbers.ts";

/** Of tiny-v2. */
export const VOCAB = 320;

/** One call, or several at once. Which cache is meant counts among those there are. */
export type Action =
  | { kind: "create"; capacity?: number }
  | { kind: "append"; cache: number; tokens: number[] }
  | { kind: "fork"; cache: number }
  | { kind: "truncate"; cache: number; keep: number }
  | { kind: "generate"; cache: number; tokens: number[]; keep: number }
  | { kind: "beside"; tokens: number[]; count: number }
  | { kind: "alike"; base: number; length: number; tokens: number[] }
  | { kind: "together"; caches: number[]; tokens: number[]; count: number }
  | { kind: "abort"; cache: number; tokens: number[] }
  | { kind: "reload"; cache: number }
  | { kind: "dispose"; cache: number };

const index = fc.nat({ max: 7 });
const token = fc.nat({ max: VOCAB - 1 });
export const few = fc.array(token, { minLength: 1, maxLength: 70 });
const many = fc.array(token, { minLength: 128, maxLength: 200 });
/** Tokens of a prompt, now and then so many that they take the up-projected path. */
export const some = fc.oneof({ weight: 4, arbitrary: few }, {
  weight: 1,
  arbitrary: many,
});
const share = fc.nat({ max: 100 });

/** Requests that begin as others do. */
export const alike: fc.Arbitrary<Action> = fc.record({
  kind: fc.constant("alike" as const),
  base: fc.nat({ max: 2 }),
  length: fc.integer({ min: 40, max: 200 }),
  tokens: fc.array(token, { minLength: 1, maxLength: 20 }),
});

/** Any of them. */
export const action: fc.Arbitrary<Action> = fc.oneof(
  fc.record({
    kind: fc.constant("create" as const),
    capacity: fc.option(fc.integer({ min: 1, max: 64 }), { nil: undefined }),
  }),
  fc.record({
    kind: fc.constant("append" as const),
    cache: index,
    tokens: some,
  }),
  fc.record({ kind: fc.constant("fork" as const), cache: index }),
  fc.record({
    kind: fc.constant("truncate" as const),
    cache: index,
    keep: share,
  }),
  fc.record({
    kind: fc.constant("generate" as const),
    cache: index,
    tokens: few,
    keep: share,
  }),
  fc.record({
    kind: fc.constant("beside" as const),
    tokens: some,
    count: fc.integer({ min: 1, max: 5 }),
  }),
  alike,
  fc.record({
    kind: fc.constant("together" as const),
    caches: fc.array(index, { minLength: 1, maxLength: 3 }),
    tokens: few,
    count: fc.integer({ min: 0, max: 3 }),
  }),
  fc.record({
    kind: fc.constant("abort" as const),
    cache: index,
    tokens: many,
  }),
  fc.record({ kind: fc.constant("reload" as const), cache: index }),
  fc.record({ kind: fc.constant("dispose" as const), cache: index }),
);

/** Beginnings that prompts have in common. */
export const BASES = [1, 2, 3].map((seed) => {
  const random = new Random(seed);
  return Array.from({ length: 200 }, () => random.integer(VOCAB));
});
