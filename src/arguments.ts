/** What is said about arguments from the outside, everywhere in the same words. */

/** How a wrong value is called in an error message. */
export function describe(value: unknown): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return "an array";
  if (typeof value === "string") return JSON.stringify(value.slice(0, 40));
  if (typeof value === "object") return "an object";
  if (typeof value === "function") return "a function";
  return String(value);
}

/** A TypeError; `verb` is what cannot be done, as in "generate". */
export function wrongType(
  verb: string,
  name: string,
  value: unknown,
  right: string,
): TypeError {
  return new TypeError(
    `Cannot ${verb}: ${name} is ${describe(value)}, and must be ${right}`,
  );
}

/** A RangeError; as {@link wrongType}. */
export function outOfRange(
  verb: string,
  name: string,
  value: unknown,
  right: string,
): RangeError {
  return new RangeError(
    `Cannot ${verb}: ${name} is ${describe(value)}, and must be ${right}`,
  );
}

/** @throws TypeError unless `options` is an object without options beside `known` */
export function checkOptionsObject(
  verb: string,
  options: unknown,
  known?: readonly string[],
): void {
  if (
    typeof options !== "object" || options === null || Array.isArray(options)
  ) {
    throw wrongType(verb, "options", options, "an object");
  }
  if (known === undefined) return;
  const unknown = Object.keys(options).find((name) => !known.includes(name));
  if (unknown !== undefined) {
    throw new TypeError(
      `Cannot ${verb}: ${unknown} is not an option; there are ${
        known.join(", ")
      }`,
    );
  }
}

/** @throws TypeError unless `signal` is an AbortSignal or absent */
export function checkSignal(verb: string, signal: unknown): void {
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    throw wrongType(verb, "signal", signal, "an AbortSignal");
  }
}

/** One of some strings. @throws TypeError for another type, RangeError for another string */
export function checkChoice(
  verb: string,
  name: string,
  value: unknown,
  allowed: readonly string[],
): void {
  if (typeof value === "string" && allowed.includes(value)) return;
  const error = typeof value === "string" ? outOfRange : wrongType;
  throw error(verb, name, value, `one of ${allowed.join(", ")}`);
}

/** An integer in [min, max]. @throws TypeError for another type, RangeError for another number */
export function checkInteger(
  verb: string,
  name: string,
  value: unknown,
  min: number,
  max: number,
): void {
  const right = `an integer in [${min}, ${max}]`;
  if (typeof value !== "number") throw wrongType(verb, name, value, right);
  if (!Number.isInteger(value) || value < min || value > max) {
    throw outOfRange(verb, name, value, right);
  }
}
