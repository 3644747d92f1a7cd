/**
 * C structs as typed encoders: fields in the order of the header, at their natural alignment.
 * `layout_test.ts` and {@link openLibrary} hold sizes and offsets against the library's own.
 */

/** A field's C type and, for `[type, n]`, how many. */
export type FieldType = "i32" | "u32" | "u64" | "i64" | "f32" | "char";
type Field = FieldType | readonly [FieldType, number];

type Scalar<T extends FieldType> = T extends "u64" | "i64" ? bigint : number;
type FieldValue<F extends Field> = F extends FieldType ? Scalar<F>
  : F extends readonly ["char", number] ? string
  : F extends readonly [infer T extends FieldType, number]
    ? readonly Scalar<T>[]
  : never;

/** The values of a struct; 64-bit integers are bigint. */
export type Values<F extends Record<string, Field>> = {
  -readonly [K in keyof F]: FieldValue<F[K]>;
};

const BYTES: Record<FieldType, number> = {
  i32: 4,
  u32: 4,
  u64: 8,
  i64: 8,
  f32: 4,
  char: 1,
};

/** Whether a value is one of the type, so that none is cut to another in silence. */
function fits(type: FieldType, value: number | bigint): boolean {
  switch (type) {
    case "i32":
      return typeof value === "number" && (value | 0) === value;
    case "u32":
      return typeof value === "number" && value >>> 0 === value;
    case "u64":
      return typeof value === "bigint" && BigInt.asUintN(64, value) === value;
    case "i64":
      return typeof value === "bigint" && BigInt.asIntN(64, value) === value;
    default:
      return typeof value === "number";
  }
}

function setScalar(
  view: DataView,
  at: number,
  type: FieldType,
  value: number | bigint,
) {
  switch (type) {
    case "i32":
      return view.setInt32(at, value as number, true);
    case "u32":
      return view.setUint32(at, value as number, true);
    case "f32":
      return view.setFloat32(at, value as number, true);
    case "u64":
      return view.setBigUint64(at, value as bigint, true);
    case "i64":
      return view.setBigInt64(at, value as bigint, true);
    case "char":
      return view.setUint8(at, value as number);
  }
}

function getScalar(
  view: DataView,
  at: number,
  type: FieldType,
): number | bigint {
  switch (type) {
    case "i32":
      return view.getInt32(at, true);
    case "u32":
      return view.getUint32(at, true);
    case "f32":
      return view.getFloat32(at, true);
    case "u64":
      return view.getBigUint64(at, true);
    case "i64":
      return view.getBigInt64(at, true);
    case "char":
      return view.getUint8(at);
  }
}

/** One field's place. */
export interface Place {
  readonly name: string;
  readonly type: FieldType;
  readonly count: number;
  readonly offset: number;
  readonly array: boolean;
}

/** A C struct. Fields that are not given are zero; `size` fields are filled in. */
export class Struct<F extends Record<string, Field>> {
  /** The name in moela.h. */
  readonly name: string;
  /** Bytes, with padding. */
  readonly size: number;
  /** Fields in order. */
  readonly places: readonly Place[];

  constructor(name: string, fields: F) {
    const places: Place[] = [];
    let offset = 0;
    let alignment = 1;
    for (const [field, declared] of Object.entries(fields)) {
      const array = typeof declared !== "string";
      const [type, count] = array ? declared : [declared, 1] as const;
      const bytes = BYTES[type];
      offset = Math.ceil(offset / bytes) * bytes;
      alignment = Math.max(alignment, bytes);
      places.push({ name: field, type, count, offset, array });
      offset += bytes * count;
    }
    this.name = name;
    this.places = places;
    this.size = Math.ceil(offset / alignment) * alignment;
  }

  /** One struct's bytes. */
  encode(values: Partial<Values<F>>): Uint8Array<ArrayBuffer> {
    return this.encodeAll([values]);
  }

  /** The bytes of an array of structs; at least one struct long, so that it is a valid pointer. */
  encodeAll(all: readonly Partial<Values<F>>[]): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(this.size * Math.max(all.length, 1));
    const view = new DataView(bytes.buffer);
    all.forEach((values, i) => this.#write(view, i * this.size, values));
    return bytes;
  }

  #set(
    view: DataView,
    at: number,
    place: Place,
    value: number | bigint,
  ) {
    if (!fits(place.type, value)) {
      throw new RangeError(
        `${this.name}.${place.name} is ${value}, and must be of type ${place.type}`,
      );
    }
    setScalar(view, at, place.type, value);
  }

  #write(view: DataView, at: number, values: Partial<Values<F>>) {
    for (const place of this.places) {
      const value = values[place.name as keyof F] as unknown;
      if (value === undefined) {
        if (place.name === "size") {
          view.setUint32(at + place.offset, this.size, true);
        }
      } else if (place.array) {
        const items = value as readonly (number | bigint)[];
        if (items.length > place.count) {
          throw new RangeError(
            `${this.name}.${place.name} has room for ${place.count} items`,
          );
        }
        items.forEach((item, i) =>
          this.#set(
            view,
            at + place.offset + i * BYTES[place.type],
            place,
            item,
          )
        );
      } else {
        this.#set(view, at + place.offset, place, value as number | bigint);
      }
    }
  }

  /** The values in a struct's bytes. */
  decode(bytes: Uint8Array<ArrayBuffer>): Values<F> {
    const view = new DataView(bytes.buffer, bytes.byteOffset, this.size);
    const values: Record<string, unknown> = {};
    for (const { name, type, count, offset, array } of this.places) {
      if (type === "char") {
        const text = bytes.subarray(offset, offset + count);
        const end = text.indexOf(0);
        values[name] = new TextDecoder().decode(
          end < 0 ? text : text.subarray(0, end),
        );
      } else if (array) {
        values[name] = Array.from(
          { length: count },
          (_, i) => getScalar(view, offset + i * BYTES[type], type),
        );
      } else {
        values[name] = getScalar(view, offset, type);
      }
    }
    return values as Values<F>;
  }
}
