/**
 * JSON schemas as grammars. What is accepted is enforced: a text of the grammar
 * is JSON that satisfies the schema. The reverse does not hold: there is one
 * order of properties, little white space, and numbers have so many digits.
 *
 * @module
 */

import { GrammarError, unsupported } from "./error.ts";
import {
  either,
  type Expr,
  literals,
  newRule,
  nothing,
  ref,
  type Rule,
  text,
} from "./expr.ts";
import { arrayOf } from "./json_array.ts";
import { isExclusive } from "./json_exclusive.ts";
import { FORMATS } from "./json_format.ts";
import { type Bounds, integerWithin, numberWithin } from "./json_number.ts";
import { type Member, objectOf } from "./json_object.ts";
import { ANY, plainChar, quoted, stringOf } from "./json_text.ts";
import { searchMatch, shared, wholeMatch } from "./regex.ts";
import {
  checkKeywords,
  declaredTypes,
  generatedTypes,
  isObject,
  isOfType,
  type Json,
  malformed,
  placeName,
  resolve,
  type SchemaObject,
  type TypeName,
  within,
} from "./schema.ts";

/** Schemas within schemas at most. */
const MAX_DEPTH = 100;
/** Schemas in one at most. */
const MAX_SCHEMAS = 20_000;
/** No output gets so long: a larger limit is none. */
const UNREACHABLE = 2 ** 26;
/** Characters of a name at most, where other names are allowed too. */
const MAX_NAME = 500;

class Converter {
  readonly #root: Json;
  readonly #rules = new Map<string, Rule>();
  readonly #encode = shared(plainChar);
  readonly #pending: { rule: Rule; schema: Json; place: string }[] = [];
  #schemas = 0;
  #depth = 0;

  constructor(root: Json) {
    this.#root = root;
  }

  convert(): Rule {
    const root = this.#rule(this.#root, "");
    // Not recursive: references may form a long chain.
    for (let next = this.#pending.pop(); next; next = this.#pending.pop()) {
      next.rule.body = this.#schema(next.schema, next.place);
    }
    return root;
  }

  #rule(schema: Json, place: string): Rule {
    let rule = this.#rules.get(place);
    if (rule === undefined) {
      rule = newRule(placeName(place));
      this.#rules.set(place, rule);
      this.#pending.push({ rule, schema, place });
    }
    return rule;
  }

  #schema(schema: Json, place: string): Expr {
    if (schema === true) return ANY;
    if (schema === false) return nothing;
    const fields = checkKeywords(schema, place);
    if (++this.#schemas > MAX_SCHEMAS) {
      throw new GrammarError(`has more than ${MAX_SCHEMAS} schemas in it`);
    }
    if (++this.#depth > MAX_DEPTH) {
      throw new GrammarError(`is nested more than ${MAX_DEPTH} schemas deep`);
    }
    const expr = this.#whole(fields, place) ?? this.#typed(fields, place);
    this.#depth--;
    return expr;
  }

  /** What one keyword says completely. */
  #whole(schema: SchemaObject, place: string): Expr | undefined {
    const has = (key: string) => Object.hasOwn(schema, key);
    if (has("$ref")) {
      const target = resolve(this.#root, schema.$ref, place);
      return ref(this.#rule(target.schema, target.place));
    }
    if (has("allOf")) {
      const all = this.#list(schema, "allOf", place);
      if (all.length > 1) {
        throw unsupported("allOf of several schemas", placeName(place));
      }
      return this.#schema(all[0], within(place, "allOf", 0));
    }
    if (has("anyOf")) return this.#branches(schema, "anyOf", place);
    if (has("oneOf")) return this.#branches(schema, "oneOf", place);
    if (has("enum")) {
      return this.#values(schema, this.#list(schema, "enum", place), place);
    }
    if (has("const")) return this.#values(schema, [schema.const], place);
    return undefined;
  }

  /** The schemas or values of a list that is not empty. */
  #list(schema: SchemaObject, key: string, place: string): Json[] {
    const list = schema[key];
    if (Array.isArray(list) && list.length > 0) return list;
    throw malformed(place, key, "an array, not empty");
  }

  #branches(schema: SchemaObject, key: string, place: string): Expr {
    const list = this.#list(schema, key, place);
    const types = declaredTypes(schema, place);
    list.forEach((branch, i) => {
      const at = within(place, key, i);
      if (types && !this.#isOnly(branch, types, at)) {
        throw unsupported(
          `type beside ${key} with other types`,
          placeName(place),
        );
      }
      if (key === "anyOf") return;
      for (let j = 0; j < i; j++) {
        if (!isExclusive(this.#root, branch, list[j])) {
          throw unsupported(
            `oneOf whose schemas ${j} and ${i} may hold together`,
            placeName(place),
          );
        }
      }
    });
    return either(
      ...list.map((each, i) => this.#schema(each, within(place, key, i))),
    );
  }

  /** Whether a schema generates nothing but these types. */
  #isOnly(schema: Json, types: readonly TypeName[], place: string): boolean {
    if (!isObject(schema)) return false;
    if (Object.hasOwn(schema, "$ref")) {
      const target = resolve(this.#root, schema.$ref, place);
      return isObject(target.schema) &&
        !Object.hasOwn(target.schema, "$ref") &&
        this.#isOnly(target.schema, types, target.place);
    }
    const own = generatedTypes(schema, place);
    return own?.every((type) =>
      types.includes(type) || type === "integer" && types.includes("number")
    ) ?? false;
  }

  #values(schema: SchemaObject, values: Json[], place: string): Expr {
    const types = declaredTypes(schema, place);
    const right = values.filter((value) =>
      !types || types.some((type) => isOfType(value, type))
    );
    return right.length === 0
      ? nothing
      : literals(right.map((value) => JSON.stringify(value)));
  }

  #typed(schema: SchemaObject, place: string): Expr {
    const types = generatedTypes(schema, place);
    if (types === undefined) return ANY;
    return either(
      ...types.map((type) => this.#type(type, schema, place)),
    );
  }

  #type(type: TypeName, schema: SchemaObject, place: string): Expr {
    switch (type) {
      case "null":
        return text("null");
      case "boolean":
        return literals(["true", "false"]);
      case "integer":
        return integerWithin(this.#bounds(schema, place), placeName(place));
      case "number":
        return numberWithin(this.#bounds(schema, place), placeName(place));
      case "string":
        return this.#string(schema, place);
      case "array":
        return this.#array(schema, place);
      case "object":
        return this.#object(schema, place);
    }
  }

  #bounds(schema: SchemaObject, place: string): Bounds {
    const bound = (key: string): number | undefined => {
      if (!Object.hasOwn(schema, key)) return undefined;
      const value = schema[key];
      if (typeof value === "number") return value;
      throw malformed(place, key, "a number");
    };
    return {
      minimum: bound("minimum"),
      maximum: bound("maximum"),
      exclusiveMinimum: bound("exclusiveMinimum"),
      exclusiveMaximum: bound("exclusiveMaximum"),
    };
  }

  /** Two counts, such as `minItems` and `maxItems`. */
  #counts(
    schema: SchemaObject,
    place: string,
    what: "Length" | "Items",
  ): { min: number; max: number } {
    const count = (key: string, absent: number): number => {
      if (!Object.hasOwn(schema, key)) return absent;
      const value = schema[key];
      if (Number.isInteger(value) && Number(value) >= 0) return Number(value);
      throw malformed(place, key, "an integer of at least 0");
    };
    const min = count(`min${what}`, 0);
    const max = count(`max${what}`, Infinity);
    if (min > max) {
      throw new GrammarError(
        `has a min${what} at ${placeName(place)} above max${what}`,
      );
    }
    return { min, max: max >= UNREACHABLE ? Infinity : max };
  }

  #string(schema: SchemaObject, place: string): Expr {
    const { min, max } = this.#counts(schema, place, "Length");
    const alone = ["pattern", "format"].filter((key) =>
      Object.hasOwn(schema, key)
    );
    if (alone.length === 0) return stringOf(min, max);
    const [key] = alone;
    const value = schema[key];
    if (typeof value !== "string") throw malformed(place, key, "a string");
    const other = alone[1] ??
      ["minLength", "maxLength"].find((name) => Object.hasOwn(schema, name));
    if (other) throw unsupported(`${other} beside ${key}`, placeName(place));
    if (key === "format") {
      const format = FORMATS.get(value);
      if (format === undefined) {
        throw unsupported(
          `the format ${JSON.stringify(value)}`,
          placeName(place),
        );
      }
      return quoted(wholeMatch(format));
    }
    try {
      return quoted(searchMatch(value, this.#encode));
    } catch (error) {
      if (!(error instanceof GrammarError)) throw error;
      throw new GrammarError(
        `has a pattern at ${placeName(place)} that ${error.message}`,
      );
    }
  }

  #array(schema: SchemaObject, place: string): Expr {
    const { min, max } = this.#counts(schema, place, "Items");
    const prefix = Object.hasOwn(schema, "prefixItems")
      ? this.#list(schema, "prefixItems", place)
      : [];
    // Without `items` any may follow; where some have a place of their own,
    // only those that must.
    const others = Object.hasOwn(schema, "items")
      ? schema.items
      : prefix.length === 0 || min > prefix.length;
    const unsaid = !Object.hasOwn(schema, "items") && prefix.length > 0;
    const most = others === false
      ? Math.min(max, prefix.length)
      : unsaid
      ? min
      : max;
    if (min > most) return nothing;
    if (Array.isArray(others)) {
      throw unsupported(
        "items as an array, which prefixItems replaced,",
        placeName(place),
      );
    }
    return arrayOf({
      prefix: prefix.map((item, i) =>
        this.#schema(item, within(place, "prefixItems", i))
      ),
      rest: others === false
        ? undefined
        : ref(this.#rule(others, within(place, "items"))),
      min,
      max: most,
    });
  }

  #object(schema: SchemaObject, place: string): Expr {
    const properties = Object.hasOwn(schema, "properties")
      ? schema.properties
      : {};
    if (!isObject(properties)) {
      throw malformed(place, "properties", "an object");
    }
    const required = Object.hasOwn(schema, "required") ? schema.required : [];
    if (
      !Array.isArray(required) ||
      !required.every((name) => typeof name === "string")
    ) throw malformed(place, "required", "an array of strings");

    const names = Object.keys(properties);
    const more = new Set(required.filter((name) => !names.includes(name)));
    const given = Object.hasOwn(schema, "additionalProperties");
    const others = given ? schema.additionalProperties : true;
    const other = this.#schema(others, within(place, "additionalProperties"));
    const members: Member[] = [
      ...names.map((name) => ({
        name,
        required: required.includes(name),
        value: this.#schema(
          properties[name],
          within(place, "properties", name),
        ),
      })),
      ...[...more].map((name) => ({ name, required: true, value: other })),
    ];
    // Where nothing is said of other properties, none is added to those named.
    const open = others !== false && (given || members.length === 0);
    const long = members.find(({ name }) => name.length > MAX_NAME);
    if (open && long) {
      throw unsupported(
        `additionalProperties beside a name of ${long.name.length} characters`,
        placeName(place),
      );
    }
    return objectOf(members, open ? other : undefined);
  }
}

/**
 * The grammar of a JSON schema.
 *
 * @param schema A schema as plain JSON.
 * @throws {GrammarError} When it says what cannot be enforced, with the place.
 */
export function schemaGrammar(schema: Json): Rule {
  return new Converter(schema).convert();
}
