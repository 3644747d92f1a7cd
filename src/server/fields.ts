/**
 * Reads typed fields of a request's JSON.
 *
 * @module
 */
import { ApiError, badField, show } from "./error.ts";

/** What a number must be. */
export interface NumberRange {
  min: number;
  max: number;
}

/**
 * An object of the request. A field that is absent or null is `undefined`; one of a wrong type or
 * value is an {@link ApiError} with status 400 that names it. Unknown fields are left alone.
 */
export class Fields {
  readonly #object: Readonly<Record<string, unknown>>;
  readonly #path: string;

  /** @param path of the object in the request; "" for the whole */
  constructor(value: unknown, path = "") {
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      throw path === ""
        ? new ApiError(
          400,
          `The body is ${show(value)}, and must be a JSON object`,
        )
        : badField(path, value, "an object");
    }
    this.#object = value as Record<string, unknown>;
    this.#path = path;
  }

  /** The object itself. */
  get object(): Readonly<Record<string, unknown>> {
    return this.#object;
  }

  /** A field's place in the request. */
  path(name: string): string {
    return this.#path === "" ? name : `${this.#path}.${name}`;
  }

  /** Whatever it is. */
  value(name: string): unknown {
    return Object.hasOwn(this.#object, name)
      ? this.#object[name] ?? undefined
      : undefined;
  }

  /** @param right what it must be */
  fail(name: string, right: string): never {
    throw badField(this.path(name), this.value(name), right);
  }

  /** Fails unless the field is there. */
  required<T>(name: string, value: T | undefined): T {
    if (value !== undefined) return value;
    const param = this.path(name);
    throw new ApiError(400, `Missing required parameter: '${param}'`, {
      param,
      code: "missing_required_parameter",
    });
  }

  string(name: string): string | undefined {
    const value = this.value(name);
    if (value === undefined || typeof value === "string") return value;
    return this.fail(name, "a string");
  }

  boolean(name: string): boolean | undefined {
    const value = this.value(name);
    if (value === undefined || typeof value === "boolean") return value;
    return this.fail(name, "a boolean");
  }

  number(name: string, { min, max }: NumberRange): number | undefined {
    const value = this.value(name);
    if (value === undefined) return undefined;
    const inside = typeof value === "number" && value >= min && value <= max;
    return inside ? value : this.fail(name, `a number in [${min}, ${max}]`);
  }

  integer(name: string, { min, max }: NumberRange): number | undefined {
    const value = this.value(name);
    if (value === undefined) return undefined;
    const inside = Number.isInteger(value) && Number(value) >= min &&
      Number(value) <= max;
    return inside
      ? Number(value)
      : this.fail(name, `an integer in [${min}, ${max}]`);
  }

  array(name: string): readonly unknown[] | undefined {
    const value = this.value(name);
    if (value === undefined || Array.isArray(value)) return value;
    return this.fail(name, "an array");
  }

  oneOf<T extends string>(name: string, values: readonly T[]): T | undefined {
    const value = this.value(name);
    if (value === undefined) return undefined;
    return values.find((each) => each === value) ??
      this.fail(name, `one of ${values.map((each) => `'${each}'`).join(", ")}`);
  }

  fields(name: string): Fields | undefined {
    const value = this.value(name);
    return value === undefined ? undefined : new Fields(value, this.path(name));
  }
}
