/**
 * The option `grammar` of a generation.
 *
 * @module
 */

import { checkEbnf } from "./ebnf.ts";
import { refuse } from "./error.ts";
import { literals, newRule, type Rule } from "./expr.ts";
import { schemaGrammar } from "./json_schema.ts";
import { wholeMatch } from "./regex.ts";
import type { Json } from "./schema.ts";

/**
 * What an output must conform to: exactly one of a JSON schema, a regular
 * expression for the whole output, literal choices, or a grammar in EBNF whose
 * first rule is `root`.
 *
 * @example
 * ```ts
 * import type { Grammar } from "./grammar.ts";
 *
 * const answer: Grammar = { choices: ["yes", "no"] };
 * const person: Grammar = {
 *   json: {
 *     type: "object",
 *     properties: { name: { type: "string" }, age: { type: "integer", minimum: 0 } },
 *     required: ["name", "age"],
 *   },
 * };
 * ```
 */
export type Grammar =
  | { json: object }
  | { regex: string }
  | { choices: readonly string[] }
  | { ebnf: string };

/** A grammar that has been read: equal contents have equal keys. */
export type ParsedGrammar =
  & {
    readonly key: string;
    /** For errors: `grammar.json` and so on. */
    readonly name: string;
  }
  & (
    | { readonly kind: "rule"; readonly rule: Rule }
    | { readonly kind: "ebnf"; readonly ebnf: string }
  );

const KINDS = ["json", "regex", "choices", "ebnf"] as const;
/** Characters of a grammar at most. */
const MAX_LENGTH = 2 ** 20;

function wrongType(name: string, right: string): TypeError {
  return new TypeError(`Cannot generate: ${name} must be ${right}`);
}

/** A copy of a schema as plain JSON, and its text. */
function copySchema(schema: unknown): { text: string; schema: Json } {
  if (typeof schema !== "object" || schema === null || Array.isArray(schema)) {
    throw wrongType("grammar.json", "a JSON schema, an object");
  }
  let text: string;
  try {
    text = JSON.stringify(schema);
  } catch (error) {
    throw new TypeError(
      "Cannot generate: grammar.json is no JSON: it contains itself, or is " +
        "too deep",
      { cause: error },
    );
  }
  return { text, schema: JSON.parse(text) };
}

function choicesOf(choices: unknown): string[] {
  if (!Array.isArray(choices) || choices.length === 0) {
    throw wrongType("grammar.choices", "an array of strings, not empty");
  }
  return choices.map((choice: unknown, i) => {
    if (typeof choice === "string" && choice.isWellFormed()) return choice;
    throw wrongType(`grammar.choices[${i}]`, "a well-formed string");
  });
}

/**
 * Reads a grammar, without a vocabulary.
 *
 * @throws {TypeError} When it is not a grammar, or says what cannot be
 * enforced: the message names it, and its place.
 */
export function parseGrammar(value: unknown): ParsedGrammar {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw wrongType("grammar", `an object with one of ${KINDS.join(", ")}`);
  }
  const fields = Object.entries(value).filter(([, field]) =>
    field !== undefined
  );
  const kind = KINDS.find((kind) => kind === fields[0]?.[0]);
  if (fields.length !== 1 || kind === undefined) {
    throw wrongType(
      "grammar",
      `an object with exactly one of ${KINDS.join(", ")}`,
    );
  }
  const name = `grammar.${kind}`;
  const content: unknown = fields[0][1];
  let text: string;
  let read: () => Rule;
  if (kind === "json") {
    const copy = copySchema(content);
    text = copy.text;
    read = () => schemaGrammar(copy.schema);
  } else if (kind === "choices") {
    const choices = choicesOf(content);
    text = JSON.stringify(choices);
    read = () => newRule("the choices", literals(choices));
  } else {
    if (typeof content !== "string") throw wrongType(name, "a string");
    text = content;
    read = () => newRule("the expression", wholeMatch(text));
  }
  if (text.length > MAX_LENGTH) {
    throw wrongType(
      name,
      `at most ${MAX_LENGTH} characters long, and has ${text.length}`,
    );
  }
  const key = `${kind} ${text}`;
  try {
    if (kind === "ebnf") return { key, name, kind, ebnf: checkEbnf(text) };
    return { key, kind: "rule", name, rule: read() };
  } catch (error) {
    throw refuse(name, error);
  }
}

/**
 * Checks a grammar, without a vocabulary.
 *
 * @throws {TypeError} As {@linkcode parseGrammar} does.
 */
export function checkGrammar(value: unknown): asserts value is Grammar {
  parseGrammar(value);
}
