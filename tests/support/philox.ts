/** The draw's random numbers once more, written from the paper: what the library must agree with. */

const M0 = 0xd2511f53n, M1 = 0xcd9e8d57n;
const W0 = 0x9e3779b9n, W1 = 0xbb67ae85n;
const low = (x: bigint) => x & 0xffffffffn;

/**
 * Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
 * (2011): four words of counter, two of key.
 */
export function philox4x32(
  counter: readonly number[],
  key: readonly number[],
): number[] {
  let [c0, c1, c2, c3] = counter.map(BigInt);
  let [k0, k1] = key.map(BigInt);
  for (let round = 0; round < 10; round++) {
    const p0 = M0 * c0, p1 = M1 * c2;
    [c0, c1, c2, c3] = [
      (p1 >> 32n) ^ c1 ^ k0,
      low(p1),
      (p0 >> 32n) ^ c3 ^ k1,
      low(p0),
    ];
    k0 = low(k0 + W0);
    k1 = low(k1 + W1);
  }
  return [c0, c1, c2, c3].map(Number);
}

/** Standard Gumbel noise of a token in the draw of the `index`-th token. */
export function gumbel(seed: bigint, index: number, token: number): number {
  const key = [Number(low(seed)), Number(seed >> 32n)];
  const [word] = philox4x32([index, token, 0, 0], key);
  return -Math.log(-Math.log((word + 0.5) / 2 ** 32));
}
