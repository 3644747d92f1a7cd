// The tokens of a row that are still in, how they are visited, and what a block of 1,024 threads
// does with them in shared memory: keys that order tokens, sums, sorting. See filters.cuh.
#pragma once

#include "cuda/noise.cuh"
#include "cuda/vocab.cuh"

namespace moela::cuda {

constexpr int FILTER_THREADS = 1024;
constexpr int FILTER_BINS = 2048;  // also the keys that can be sorted
constexpr int FILTER_LIST = 4096;
constexpr int TOKEN_BITS = 18;
constexpr uint64_t TOKEN_MASK = (uint64_t{1} << TOKEN_BITS) - 1;
constexpr uint64_t ALL_KEYS = ~uint64_t{0};

// Shared memory of a block.
struct FilterRoom {
  union {
    struct {
      uint32_t low[FILTER_BINS], high[FILTER_BINS];  // of sums
    } bins;
    uint64_t keys[FILTER_BINS];
  };
  uint32_t counts[FILTER_BINS];
  int32_t list[FILTER_LIST];
  uint64_t partial[32];
  Draw draws[32];
  uint64_t before, cut;
  int bin, population, n;
};

// Larger for a larger float; both zeros are one.
__device__ __forceinline__ uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(__fadd_rn(x, 0.0f));
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ordered(uint32_t key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

// Tokens that are still in.
struct Candidates {
  const float* row;
  int vocab;
  bool raw;       // every token is in, NaN as -inf, and there is no temperature
  bool unscaled;  // there is no temperature yet
  float largest;
  double factor;   // 1 / temperature
  float at_least;  // logits below are out
  uint64_t cut;    // of by_probability(): those above are out
  double floor;    // scaled logits below are out
  double normaliser, entropy;
  uint64_t typical;  // of by_distance()
  int n_list;        // >= 0: all that are in are among list[0, n_list)
  const int32_t* list;

  __device__ float scaled(float v) const {
    const double below = static_cast<double>(v) - largest;
    return below == 0 ? 0.0f : static_cast<float>(below * factor);
  }
  __device__ static uint64_t by_logit(int token, float v) {
    return static_cast<uint64_t>(~ordered(v)) << TOKEN_BITS | static_cast<uint32_t>(token);
  }
  __device__ static uint64_t by_probability(int token, float x) {
    return static_cast<uint64_t>(__float_as_uint(fabsf(x))) << TOKEN_BITS |
           static_cast<uint32_t>(token);
  }
  // 34 bits of the distance's mantissa: those of equal tokens are equal.
  __device__ uint64_t by_distance(int token, float x) const {
    const double distance = fabs(normaliser - x - entropy);
    return (static_cast<uint64_t>(__double_as_longlong(distance)) & ~TOKEN_MASK) |
           static_cast<uint32_t>(token);
  }
};
constexpr int LOGIT_BITS = 32 + TOKEN_BITS, PROBABILITY_BITS = 31 + TOKEN_BITS, DISTANCE_BITS = 63;

// Calls f(token, v, x) for the candidates, x the scaled logit (v itself when raw).
template <class Body>
__device__ __forceinline__ void for_each(const Candidates& c, const Body& f) {
  const auto consider = [&](int token, float v) {
    if (c.raw) {
      if (isnan(v)) v = NEVER;
      if (v >= c.at_least) f(token, v, v);
      return;
    }
    if (!(v > NEVER) || v < c.at_least) return;
    if (c.unscaled) return f(token, v, v);
    const float x = c.scaled(v);
    if (!(x > NEVER) || x < c.floor) return;
    if (c.cut != ALL_KEYS && Candidates::by_probability(token, x) > c.cut) return;
    if (c.typical != ALL_KEYS && c.by_distance(token, x) > c.typical) return;
    f(token, v, x);
  };
  const int thread = threadIdx.x;
  if (c.n_list >= 0) {
    for (int i = thread; i < c.n_list; i += FILTER_THREADS) {
      consider(c.list[i], c.row[c.list[i]]);
    }
    return;
  }
  if (c.vocab % 4 != 0) {
    for (int t = thread; t < c.vocab; t += FILTER_THREADS) consider(t, c.row[t]);
    return;
  }
  constexpr int AHEAD = 4, STRIDE = 4 * FILTER_THREADS;
  for (int t = 4 * thread; t < c.vocab; t += AHEAD * STRIDE) {
    float4 v[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      const int at = t + i * STRIDE;
      if (at < c.vocab) v[i] = *reinterpret_cast<const float4*>(c.row + at);
    }
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      const int at = t + i * STRIDE;
      if (at >= c.vocab) break;
      consider(at, v[i].x);
      consider(at + 1, v[i].y);
      consider(at + 2, v[i].z);
      consider(at + 3, v[i].w);
    }
  }
}

// The sum over threads before this one; `whole`: over all.
__device__ __forceinline__ uint64_t sum_before(uint64_t value, FilterRoom& room, uint64_t& whole) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint64_t sum = value;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const uint64_t other = __shfl_up_sync(~0u, sum, d);
    if (lane >= d) sum += other;
  }
  __syncthreads();
  if (lane == 31) room.partial[warp] = sum;
  __syncthreads();
  uint64_t partial = room.partial[lane];
  const uint64_t own = partial;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const uint64_t other = __shfl_up_sync(~0u, partial, d);
    if (lane >= d) partial += other;
  }
  whole = __shfl_sync(~0u, partial, 31);
  return __shfl_sync(~0u, partial - own, warp) + sum - value;
}

// Sorts room.keys[0, n), n at most FILTER_BINS; what is behind is overwritten.
__device__ __forceinline__ void sort_keys(FilterRoom& room, int n) {
  int size = 2;
  while (size < n) size *= 2;
  __syncthreads();
  for (int i = n + static_cast<int>(threadIdx.x); i < size; i += FILTER_THREADS) {
    room.keys[i] = ALL_KEYS;
  }
  for (int run = 2; run <= size; run *= 2) {
    for (int step = run / 2; step > 0; step /= 2) {
      __syncthreads();
      const int thread = threadIdx.x;
      if (thread < size / 2) {
        const int i = thread / step * 2 * step + thread % step;
        const uint64_t a = room.keys[i], b = room.keys[i + step];
        if ((a > b) == ((i & run) == 0)) {
          room.keys[i] = b;
          room.keys[i + step] = a;
        }
      }
    }
  }
  __syncthreads();
}

// Puts the candidates into the list of shared memory, if they fit.
__device__ __forceinline__ void make_list(Candidates& c, FilterRoom& room) {
  if (c.n_list >= 0 && (c.n_list <= FILTER_BINS || c.list == room.list)) return;
  __syncthreads();
  if (threadIdx.x == 0) room.n = 0;
  __syncthreads();
  for_each(c, [&](int token, float, float) {
    const int i = atomicAdd(&room.n, 1);
    if (i < FILTER_LIST) room.list[i] = token;
  });
  __syncthreads();
  if (room.n <= FILTER_LIST) {
    c.n_list = room.n;
    c.list = room.list;
  }
}

// Puts the keys that `wanted` into room.keys, of which there must be at most FILTER_BINS; returns
// how many.
template <class Key, class Wanted>
__device__ __forceinline__ int collect(const Candidates& c, FilterRoom& room, const Key& key,
                                       const Wanted& wanted) {
  __syncthreads();
  if (threadIdx.x == 0) room.n = 0;
  __syncthreads();
  for_each(c, [&](int token, float v, float x) {
    const uint64_t k = key(token, v, x);
    if (wanted(k)) {
      const int i = atomicAdd(&room.n, 1);
      if (i < FILTER_BINS) room.keys[i] = k;
    }
  });
  __syncthreads();
  return min(room.n, FILTER_BINS);
}

// Sums of exp of scaled logits are integers of this unit, so that their order does not matter.
constexpr float MASS_UNIT = 0x1p45f;
__device__ __forceinline__ uint64_t mass_of(float x) { return __float2ull_rn(expf(x) * MASS_UNIT); }

}  // namespace moela::cuda
