/**
 * Checked reading of the fields of a JSON object: each failure is a
 * `CheckpointError` that names the file, the field, what was found and what
 * would be right.
 *
 * @module
 */

import { CheckpointError } from "../errors.ts";

/** A JSON object whose fields have not been looked at yet. */
export type JsonObject = Readonly<Record<string, unknown>>;

/** Whether `value` is a JSON object: neither null nor an array. */
export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * A value as an error message shows it: short, and never recursive, since a
 * hostile file may be nested deeper than the stack.
 */
export function show(value: unknown): string {
  if (value === undefined) return "missing";
  if (typeof value === "string") {
    return JSON.stringify(value.length > 60 ? value.slice(0, 60) + "…" : value);
  }
  if (Array.isArray(value)) {
    const inner = value.slice(0, 8).map((item) =>
      Array.isArray(item) ? "[…]" : show(item)
    );
    return `[${inner.join(", ")}${value.length > 8 ? ", …" : ""}]`;
  }
  return typeof value === "object" && value !== null
    ? "an object"
    : String(value);
}

/** Limits of a number; `fallback` stands in where the field is absent. */
export interface NumberRule<F> {
  /** The least value allowed. */
  min: number;
  /** The greatest value allowed. */
  max: number;
  /** The value when the field is absent or null; required without it. */
  fallback?: F;
}

/** Reads the fields of one JSON object, and knows where it came from. */
export class Fields {
  readonly #object: JsonObject;
  readonly #file: string;
  readonly #prefix: string;

  /**
   * Wraps a parsed object.
   *
   * @param value What was parsed; anything but an object is an error.
   * @param file Path for the messages.
   * @param name The field that holds the object, absent at the top.
   */
  constructor(value: unknown, file: string, name?: string) {
    this.#file = file;
    this.#prefix = name === undefined ? "" : `${name}.`;
    if (!isJsonObject(value)) {
      throw new CheckpointError(
        `${file}: ${name ?? "the content"} is ${show(value)}, ` +
          "and must be a JSON object",
      );
    }
    this.#object = value;
  }

  /** The field as it is; null counts as absent. */
  raw(name: string): unknown {
    if (!Object.hasOwn(this.#object, name)) return undefined;
    return this.#object[name] ?? undefined;
  }

  /** Whether the field is there, be it null. */
  has(name: string): boolean {
    return Object.hasOwn(this.#object, name);
  }

  /** Throws: the field is what it is, and must be something else. */
  refuse(name: string, mustBe: string): never {
    const value = this.has(name) ? this.#object[name] : undefined;
    throw new CheckpointError(
      `${this.#file}: ${this.#prefix}${name} is ${show(value)}, ` +
        `and must be ${mustBe}`,
    );
  }

  /** An integer in [min, max]. */
  integer<F = number>(name: string, rule: NumberRule<F>): number | F {
    const value = this.raw(name);
    if (value === undefined && rule.fallback !== undefined) {
      return rule.fallback;
    }
    if (
      typeof value !== "number" || !Number.isSafeInteger(value) ||
      value < rule.min || value > rule.max
    ) {
      this.refuse(name, `an integer in [${rule.min}, ${rule.max}]`);
    }
    return value;
  }

  /** A finite number in [min, max]. */
  number<F = number>(name: string, rule: NumberRule<F>): number | F {
    const value = this.raw(name);
    if (value === undefined && rule.fallback !== undefined) {
      return rule.fallback;
    }
    // NaN fails both comparisons, so it is refused too.
    if (
      typeof value !== "number" || !(value >= rule.min && value <= rule.max)
    ) {
      this.refuse(name, `a number in [${rule.min}, ${rule.max}]`);
    }
    return value;
  }

  /** true or false. */
  boolean<F = boolean>(name: string, fallback?: F): boolean | F {
    const value = this.raw(name);
    if (value === undefined && fallback !== undefined) return fallback;
    if (typeof value !== "boolean") this.refuse(name, "true or false");
    return value;
  }

  /** One of a few strings. */
  choice<T extends string>(
    name: string,
    choices: readonly T[],
    fallback?: T,
  ): T {
    const value = this.raw(name) ?? fallback;
    const found = choices.find((choice) => choice === value);
    if (found === undefined) {
      this.refuse(name, choices.map((choice) => `"${choice}"`).join(" or "));
    }
    return found;
  }

  /** Fields that other code does not read, if they are plain values. */
  scalars(): Record<string, unknown> {
    return Object.fromEntries(
      Object.entries(this.#object).filter(([, value]) =>
        typeof value !== "object" || value === null
      ),
    );
  }
}
