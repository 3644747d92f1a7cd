/** Conversions of the small float formats, and how far two arrays differ. */

/** A float format of at most 16 bits with subnormals. */
interface SmallFloat {
  exponentBits: number;
  mantissaBits: number;
  /** Largest finite value; beyond it, encoding saturates. */
  max: number;
}

const F16: SmallFloat = { exponentBits: 5, mantissaBits: 10, max: 65504 };
const F8_E4M3: SmallFloat = { exponentBits: 4, mantissaBits: 3, max: 448 };

function decode(bits: number, format: SmallFloat): number {
  const { exponentBits, mantissaBits } = format;
  const bias = 2 ** (exponentBits - 1) - 1;
  const mantissa = bits & (2 ** mantissaBits - 1);
  const exponent = (bits >> mantissaBits) & (2 ** exponentBits - 1);
  const magnitude = exponent === 0
    ? mantissa * 2 ** (1 - bias - mantissaBits)
    : (1 + mantissa / 2 ** mantissaBits) * 2 ** (exponent - bias);
  const sign = bits >> (exponentBits + mantissaBits) ? -1 : 1;
  return magnitude > format.max ? NaN : sign * magnitude;
}

function roundHalfEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}

function encode(x: number, format: SmallFloat): number {
  const { exponentBits, mantissaBits, max } = format;
  const bias = 2 ** (exponentBits - 1) - 1;
  const sign = x < 0 || Object.is(x, -0) ? 1 : 0;
  const magnitude = Math.min(Math.abs(x), max);
  let exponent = 1 - bias;
  while (2 ** (exponent + 1) <= magnitude) exponent++;
  const steps = roundHalfEven(magnitude / 2 ** (exponent - mantissaBits));
  // A carry out of the mantissa, or none into it (a subnormal), falls into
  // place by addition.
  const bits = (exponent + bias - 1) * 2 ** mantissaBits + steps;
  return bits + sign * 2 ** (exponentBits + mantissaBits);
}

/** The value of an IEEE half; infinities become NaN. */
export function fromF16(bits: number): number {
  return decode(bits, F16);
}

/** The nearest IEEE half, ties to even. */
export function toF16(x: number): number {
  return encode(x, F16);
}

/** The value of an FP8 E4M3 number; 0x7f is NaN. */
export function fromF8(bits: number): number {
  return decode(bits, F8_E4M3);
}

/** The nearest FP8 E4M3 number, ties to even, at most 448. */
export function toF8(x: number): number {
  return encode(x, F8_E4M3);
}

const word = new DataView(new ArrayBuffer(4));

/** The value of a bfloat16: a float32 without its lower half. */
export function fromBf16(bits: number): number {
  word.setUint32(0, bits << 16);
  return word.getFloat32(0);
}

/** The nearest bfloat16, ties to even. */
export function toBf16(x: number): number {
  word.setFloat32(0, x);
  const bits = word.getUint32(0);
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

/** ‖actual − expected‖₂ / ‖expected‖₂; Infinity when the lengths differ. */
export function relativeError(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
): number {
  if (actual.length !== expected.length) return Infinity;
  let difference = 0, norm = 0;
  for (let i = 0; i < expected.length; i++) {
    difference += (actual[i] - expected[i]) ** 2;
    norm += expected[i] ** 2;
  }
  return difference === 0 ? 0 : Math.sqrt(difference / norm);
}

/** A small seeded generator: the same numbers on every machine. */
export class Random {
  #state: number;

  /** Any seed; the first numbers differ between neighbouring seeds. */
  constructor(seed: number) {
    this.#state = (Math.imul(seed, 0x9e3779b1) ^ 0x5bd1e995) >>> 0 || 1;
    for (let i = 0; i < 8; i++) this.uniform();
  }

  /** Uniform in (0, 1): xorshift32. */
  uniform(): number {
    let x = this.#state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#state = x >>> 0;
    return this.#state / 2 ** 32;
  }

  /** An integer in [0, below). */
  integer(below: number): number {
    return Math.floor(this.uniform() * below);
  }

  /** Standard normal: Box and Muller. */
  normal(): number {
    return Math.sqrt(-2 * Math.log(this.uniform())) *
      Math.cos(2 * Math.PI * this.uniform());
  }

  /** One of the items. */
  pick<T>(items: readonly T[]): T {
    return items[this.integer(items.length)];
  }
}
