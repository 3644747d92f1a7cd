/**
 * Reading JSON schemas: keywords by type, places, references.
 *
 * @module
 */

import { GrammarError, unsupported } from "./error.ts";

/** A value of JSON. */
export type Json =
  | null
  | boolean
  | number
  | string
  | Json[]
  | { [key: string]: Json };

/** A schema that is an object. */
export type SchemaObject = { [key: string]: Json };

/** The types of JSON schema. */
export type TypeName =
  | "null"
  | "boolean"
  | "integer"
  | "number"
  | "string"
  | "array"
  | "object";

const TYPES: readonly TypeName[] = [
  "null",
  "boolean",
  "integer",
  "number",
  "string",
  "array",
  "object",
];

/** Keywords that say nothing about a value. */
const ANNOTATIONS: ReadonlySet<string> = new Set([
  "title",
  "description",
  "default",
  "examples",
  "deprecated",
  "readOnly",
  "writeOnly",
  "$schema",
  "$comment",
  "$defs",
  "definitions",
]);

/** Keywords that constrain one type. */
const KEYWORDS: ReadonlyMap<TypeName, readonly string[]> = new Map([
  ["string", ["minLength", "maxLength", "pattern", "format"]],
  ["number", ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]],
  ["array", ["items", "prefixItems", "minItems", "maxItems"]],
  ["object", ["properties", "required", "additionalProperties"]],
]);

/** Keywords that stand for the whole schema, and what may stand beside them. */
const WHOLE: ReadonlyMap<string, readonly string[]> = new Map([
  ["$ref", []],
  ["allOf", []],
  ["anyOf", ["type"]],
  ["oneOf", ["type"]],
  ["enum", ["type"]],
  ["const", ["type"]],
]);

/** How a place is called in errors. */
export function placeName(place: string): string {
  return place === "" ? "the top" : place;
}

/** The place of something within what is at `place`. */
export function within(place: string, ...keys: (string | number)[]): string {
  return keys.reduce<string>(
    (at, key) =>
      `${at}/${`${key}`.replaceAll("~", "~0").replaceAll("/", "~1")}`,
    place,
  );
}

/** A wrong value of a keyword. */
export function malformed(
  place: string,
  keyword: string,
  right: string,
): GrammarError {
  return new GrammarError(
    `has a wrong ${keyword} at ${placeName(place)}, which must be ${right}`,
  );
}

/** Whether a value is an object of JSON. */
export function isObject(value: Json | undefined): value is SchemaObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A schema that is not `true` or `false`, or a clear error. */
export function checkKeywords(schema: Json, place: string): SchemaObject {
  if (!isObject(schema)) {
    throw new GrammarError(
      `has no schema at ${placeName(place)}, where an object or a boolean ` +
        "must be",
    );
  }
  const typed = [...KEYWORDS.values()].flat();
  const keys = Object.keys(schema).filter((key) => !ANNOTATIONS.has(key));
  const whole = keys.find((key) => WHOLE.has(key));
  for (const key of keys) {
    if (key === "$id" && place === "") continue;
    if (!WHOLE.has(key) && key !== "type" && !typed.includes(key)) {
      throw unsupported(key, placeName(place));
    }
    if (whole && key !== whole && !WHOLE.get(whole)!.includes(key)) {
      throw unsupported(`${key} beside ${whole}`, placeName(place));
    }
  }
  return schema;
}

/** The types that `type` names; undefined without it. */
export function declaredTypes(
  schema: SchemaObject,
  place: string,
): TypeName[] | undefined {
  if (!Object.hasOwn(schema, "type")) return undefined;
  const list = Array.isArray(schema.type) ? schema.type : [schema.type];
  const known = list.every((type) => TYPES.includes(type as TypeName));
  if (known && list.length > 0) return list as TypeName[];
  throw malformed(place, "type", `of ${TYPES.join(", ")}, or a list of these`);
}

/**
 * The types of the values that are generated: those that `type` names, else
 * those that the keywords are about; undefined where any value will do.
 */
export function generatedTypes(
  schema: SchemaObject,
  place: string,
): TypeName[] | undefined {
  const declared = declaredTypes(schema, place);
  if (declared) return declared;
  const types = [...KEYWORDS].filter(([, keys]) =>
    keys.some((key) => Object.hasOwn(schema, key))
  );
  return types.length > 0 ? types.map(([type]) => type) : undefined;
}

/** Whether a value is of a type. */
export function isOfType(value: Json, type: TypeName): boolean {
  if (type === "integer") return Number.isInteger(value);
  const own = value === null
    ? "null"
    : Array.isArray(value)
    ? "array"
    : typeof value;
  return own === type;
}

/** Whether two values of JSON are the same. */
export function isSame(a: Json, b: Json): boolean {
  if (Array.isArray(a) && Array.isArray(b)) {
    return a.length === b.length && a.every((item, i) => isSame(item, b[i]));
  }
  if (isObject(a) && isObject(b)) {
    const keys = Object.keys(a);
    return keys.length === Object.keys(b).length &&
      keys.every((key) => Object.hasOwn(b, key) && isSame(a[key], b[key]));
  }
  return a === b;
}

/** What a reference means: a place in the same schema, and what is there. */
export function resolve(
  root: Json,
  reference: Json,
  place: string,
): { schema: Json; place: string } {
  if (typeof reference !== "string") {
    throw malformed(place, "$ref", "a string");
  }
  if (!/^#(\/|$)/.test(reference)) {
    throw unsupported(
      `the $ref ${JSON.stringify(reference)}, which is not within the schema,`,
      placeName(place),
    );
  }
  let schema: Json | undefined = root;
  let pointer = reference.slice(1);
  try {
    pointer = decodeURIComponent(pointer);
  } catch {
    schema = undefined;
  }
  for (const part of pointer.split("/").slice(1)) {
    const key = part.replaceAll("~1", "/").replaceAll("~0", "~");
    const inside = typeof schema === "object" && schema !== null &&
      Object.hasOwn(schema, key);
    schema = inside ? (schema as SchemaObject)[key] : undefined;
  }
  if (schema === undefined) {
    throw new GrammarError(
      `has a $ref ${JSON.stringify(reference)} at ${placeName(place)} that ` +
        "leads nowhere",
    );
  }
  return { schema, place: pointer };
}
