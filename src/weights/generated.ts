export function tensorKey(_name: string): bigint {
  return 0n;
}
export function generatedSpread(
  _n: string,
  _s: readonly number[],
  _c: unknown,
) {
  return { mean: 0, deviation: 1 };
}
