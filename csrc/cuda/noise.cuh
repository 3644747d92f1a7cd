// The noise of a draw, word for word that of cpu/philox.h: Philox4x32-10 (Salmon et al., "Parallel
// random numbers: as easy as 1, 2, 3", 2011), key = seed, counter = (index, token, 0, 0).
#pragma once

#include <cstdint>

namespace moela::cuda {

__device__ __forceinline__ uint32_t noise_word(uint64_t seed, uint32_t index, uint32_t token) {
  uint32_t c0 = index, c1 = token, c2 = 0, c3 = 0;
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint64_t product0 = static_cast<uint64_t>(0xd2511f53u) * c0;
    const uint64_t product1 = static_cast<uint64_t>(0xcd9e8d57u) * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c1 = static_cast<uint32_t>(product1);
    c3 = static_cast<uint32_t>(product0);
    key0 += 0x9e3779b9;
    key1 += 0xbb67ae85;
  }
  return c0;
}

// Standard Gumbel noise of a random word.
__device__ __forceinline__ double gumbel(uint32_t word) {
  return -log(-log((word + 0.5) * 0x1p-32));
}

// No gumbel() exceeds this.
constexpr float MAX_GUMBEL = 22.88f;

// The best of what was considered: the largest score, the lowest token of equals; -1: nothing.
struct Draw {
  double score;
  int token;
};

__device__ __forceinline__ Draw better(const Draw& a, const Draw& b) {
  if (a.token < 0 || b.token < 0) return a.token < 0 ? b : a;
  return b.score > a.score || (b.score == a.score && b.token < a.token) ? b : a;
}

// Whether a token of about this logit may reach the score `floor`: asked before its exact logit and
// any logarithm. A uniform u has -ln u >= 1 - u, so that a noise of b needs 1 - u <= exp(-b).
__device__ __forceinline__ bool may_reach(float floor, float x, uint32_t word) {
  const float from_one = (static_cast<float>(~word) + 0.5f) * 0x1p-32f;
  return !(from_one > __expf(fminf(x - floor, 80.0f)) * 1.001f);
}

// A score that is known to be reached, as the floor for others.
__device__ __forceinline__ float floor_of(double score) {
  return static_cast<float>(score) - 1e-4f;
}

// Of a warp, on all lanes.
__device__ __forceinline__ Draw warp_best(Draw best) {
#pragma unroll
  for (int s = 16; s > 0; s /= 2) {
    const Draw other{__shfl_xor_sync(~0u, best.score, s), __shfl_xor_sync(~0u, best.token, s)};
    best = better(best, other);
  }
  return best;
}

}  // namespace moela::cuda
