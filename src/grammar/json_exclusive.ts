/**
 * Whether two schemas never hold together, as `oneOf` needs.
 *
 * @module
 */

import {
  declaredTypes,
  generatedTypes,
  isObject,
  isOfType,
  isSame,
  type Json,
  resolve,
  type SchemaObject,
  type TypeName,
} from "./schema.ts";

const ALL: readonly TypeName[] = [
  "null",
  "boolean",
  "number",
  "string",
  "array",
  "object",
];

/** A schema behind references, when it is one of plain keywords. */
function plain(root: Json, schema: Json): SchemaObject | undefined {
  let at = schema;
  for (let i = 0; i < 10; i++) {
    if (!isObject(at)) return undefined;
    const combined = ["anyOf", "oneOf", "allOf"].some((key) =>
      Object.hasOwn(at as SchemaObject, key)
    );
    if (combined) return undefined;
    if (!Object.hasOwn(at, "$ref")) return at;
    at = resolve(root, at.$ref, "").schema;
  }
  return undefined;
}

/** The only values that a schema has, when it lists them. */
function values(schema: SchemaObject): Json[] | undefined {
  if (Object.hasOwn(schema, "const")) return [schema.const];
  return Array.isArray(schema.enum) ? schema.enum : undefined;
}

function mayBe(value: Json, schema: SchemaObject): boolean {
  const types = declaredTypes(schema, "");
  if (types && !types.some((type) => isOfType(value, type))) return false;
  return values(schema)?.some((other) => isSame(value, other)) ?? true;
}

function overlap(a: TypeName, b: TypeName): boolean {
  const numeric = (type: TypeName) => type === "integer" ? "number" : type;
  return numeric(a) === numeric(b);
}

/** Whether an object of the first schema is never one of the second. */
function haveOtherMembers(root: Json, a: SchemaObject, b: SchemaObject) {
  const propertiesOf = (schema: SchemaObject) =>
    isObject(schema.properties) ? schema.properties : {};
  const requiredBy = (schema: SchemaObject) =>
    Array.isArray(schema.required) ? schema.required.map(String) : [];
  const [of, others] = [propertiesOf(a), propertiesOf(b)];
  return [...requiredBy(a), ...requiredBy(b)].some((name) => {
    const [mine, other] = [of, others].map((properties) =>
      Object.hasOwn(properties, name)
        ? plain(root, properties[name])
        : undefined
    );
    if (!mine || !other) return false;
    const [listed, listedToo] = [values(mine), values(other)];
    if (listed) return !listed.some((value) => mayBe(value, other));
    return listedToo ? !listedToo.some((value) => mayBe(value, mine)) : false;
  });
}

/** Whether what is generated for `a` is never valid for `b`. */
function avoids(root: Json, a: SchemaObject, b: SchemaObject): boolean {
  const listed = values(a);
  if (listed) return !listed.some((value) => mayBe(value, b));
  const listedToo = values(b);
  if (listedToo) return !listedToo.some((value) => mayBe(value, a));
  const mine = generatedTypes(a, "") ?? ALL;
  const theirs = declaredTypes(b, "") ?? ALL;
  const common = mine.filter((type) =>
    theirs.some((other) => overlap(type, other))
  );
  return common.every((type) =>
    type === "object" && haveOtherMembers(root, a, b)
  );
}

/**
 * Whether no value that is generated for one of two schemas is valid for the
 * other: their types, values or, of objects, those of a required property
 * exclude each other. What cannot be told counts as no.
 */
export function isExclusive(root: Json, first: Json, second: Json): boolean {
  const a = plain(root, first);
  const b = plain(root, second);
  return a !== undefined && b !== undefined && avoids(root, a, b) &&
    avoids(root, b, a);
}
