// Top-k, top-p, min-p and typical-p on the device, with the cuts of cpu/filters.cc: by descending
// probability (typical-p: by ascending distance of the surprise from the entropy), then by
// ascending token. A block a row. Nothing is sorted but the few tokens at a cut: tokens are
// counted, or their probabilities summed, by the leading bits of a key that orders them, until few
// are left in question. Sums are integers (probability * 2^45), so that their order does not
// matter.
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
  bool raw;  // every token is in, NaN as -inf, and there is no temperature
  float largest;
  double factor;   // 1 / temperature
  float at_least;  // logits below are out
  uint64_t cut;    // of by_probability(): those above are out
  double floor;    // scaled logits below are out
  double normaliser, entropy;
  uint64_t typical;  // of by_distance()
  int n_list;        // >= 0: all that are in are among room.list[0, n_list)

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
__device__ __forceinline__ void for_each(const Candidates& c, const FilterRoom& room,
                                         const Body& f) {
  const auto consider = [&](int token, float v) {
    if (c.raw) {
      if (isnan(v)) v = NEVER;
      if (v >= c.at_least) f(token, v, v);
      return;
    }
    if (!(v > NEVER) || v < c.at_least) return;
    const float x = c.scaled(v);
    if (!(x > NEVER) || x < c.floor) return;
    if (c.cut != ALL_KEYS && Candidates::by_probability(token, x) > c.cut) return;
    if (c.typical != ALL_KEYS && c.by_distance(token, x) > c.typical) return;
    f(token, v, x);
  };
  const int thread = threadIdx.x;
  if (c.n_list >= 0) {
    for (int i = thread; i < c.n_list; i += FILTER_THREADS) {
      consider(room.list[i], c.row[room.list[i]]);
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

// Puts the candidates into the list, if they fit.
__device__ __forceinline__ void make_list(Candidates& c, FilterRoom& room) {
  if (c.n_list >= 0) return;
  __syncthreads();
  if (threadIdx.x == 0) room.n = 0;
  __syncthreads();
  for_each(c, room, [&](int token, float, float) {
    const int i = atomicAdd(&room.n, 1);
    if (i < FILTER_LIST) room.list[i] = token;
  });
  __syncthreads();
  if (room.n <= FILTER_LIST) c.n_list = room.n;
}

// Puts the keys that `wanted` into room.keys, of which there must be at most FILTER_BINS; returns
// how many.
template <class Key, class Wanted>
__device__ __forceinline__ int collect(const Candidates& c, FilterRoom& room, const Key& key,
                                       const Wanted& wanted) {
  __syncthreads();
  if (threadIdx.x == 0) room.n = 0;
  __syncthreads();
  for_each(c, room, [&](int token, float v, float x) {
    const uint64_t k = key(token, v, x);
    if (wanted(k)) {
      const int i = atomicAdd(&room.n, 1);
      if (i < FILTER_BINS) room.keys[i] = k;
    }
  });
  __syncthreads();
  return min(room.n, FILTER_BINS);
}

// Taking candidates in ascending order of their keys [0, 2^bits), the low bits of which are the
// token, while the sum of `mass` over those before is below `limit` (>= 1): the last key taken, or
// ALL_KEYS when all are.
template <class Key, class Mass>
__device__ __noinline__ uint64_t last_taken(const Candidates& c, FilterRoom& room, int bits,
                                            uint64_t limit, const Key key, const Mass mass) {
  const int thread = threadIdx.x;
  uint64_t prefix = 0, before = 0, whole;
  for (int undecided = bits; undecided > 0;) {
    const int width = min(11, undecided), shift = undecided - width;
    __syncthreads();
    for (int i = thread; i < FILTER_BINS; i += FILTER_THREADS) {
      room.bins.low[i] = room.bins.high[i] = room.counts[i] = 0;
    }
    if (thread == 0) room.bin = -1;
    __syncthreads();
    for_each(c, room, [&](int token, float v, float x) {
      const uint64_t k = key(token, v, x);
      if (k >> undecided != prefix) return;
      const int bin = static_cast<int>(k >> shift) & ((1 << width) - 1);
      const uint64_t m = mass(token, x);
      const uint32_t low = static_cast<uint32_t>(m);
      const uint32_t old = atomicAdd(&room.bins.low[bin], low);
      const uint32_t high = static_cast<uint32_t>(m >> 32) + (old + low < old);
      if (high) atomicAdd(&room.bins.high[bin], high);
      atomicAdd(&room.counts[bin], 1u);
    });
    __syncthreads();
    const auto in_bin = [&](int i) {
      return static_cast<uint64_t>(room.bins.high[i]) << 32 | room.bins.low[i];
    };
    const uint64_t first = in_bin(2 * thread), second = in_bin(2 * thread + 1);
    uint64_t sum = before + sum_before(first + second, room, whole);
    for (int i = 0; i < 2; i++) {
      const uint64_t next = sum + (i == 0 ? first : second);
      if (sum < limit && next >= limit) {
        room.bin = 2 * thread + i;
        room.before = sum;
        room.population = static_cast<int>(room.counts[2 * thread + i]);
      }
      sum = next;
    }
    __syncthreads();
    if (room.bin < 0) return ALL_KEYS;
    prefix = prefix << width | static_cast<uint32_t>(room.bin);
    before = room.before;
    undecided = shift;
    const int population = room.population;
    if (undecided == 0 || population > FILTER_BINS) continue;
    const int n = collect(c, room, key, [&](uint64_t k) { return k >> undecided == prefix; });
    sort_keys(room, n);
    if (thread == 0) room.cut = room.keys[n - 1];
    uint64_t masses[2];
    for (int i = 0; i < 2; i++) {
      const int at = 2 * thread + i;
      masses[i] = 0;
      if (at < n) {
        const int token = static_cast<int>(room.keys[at] & TOKEN_MASK);
        masses[i] = mass(token, c.raw ? 0.0f : c.scaled(c.row[token]));
      }
    }
    sum = before + sum_before(masses[0] + masses[1], room, whole);
    for (int i = 0; i < 2; i++) {
      if (sum < limit && sum + masses[i] >= limit) room.cut = room.keys[2 * thread + i];
      sum += masses[i];
    }
    __syncthreads();
    return room.cut;
  }
  return prefix;
}

// The n-th largest logit among the candidates, or something below it: the n-th largest of the
// threads' own largest.
__device__ __forceinline__ float at_least_of(const Candidates& c, FilterRoom& room, int n) {
  if (n > FILTER_THREADS || c.n_list >= 0) return c.at_least;
  uint64_t best = ALL_KEYS;
  for_each(c, room,
           [&](int token, float v, float) { best = min(best, Candidates::by_logit(token, v)); });
  __syncthreads();
  room.keys[threadIdx.x] = best;
  sort_keys(room, FILTER_THREADS);
  const uint64_t key = room.keys[n - 1];
  return key == ALL_KEYS ? c.at_least : from_ordered(~static_cast<uint32_t>(key >> TOKEN_BITS));
}

// Tokens up to this key of by_logit() are the n largest.
__device__ __forceinline__ uint64_t largest_n(Candidates& c, FilterRoom& room, int n) {
  c.at_least = at_least_of(c, room, n);
  make_list(c, room);
  return last_taken(
      c, room, LOGIT_BITS, n,
      [](int token, float v, float) { return Candidates::by_logit(token, v); },
      [](int, float) { return uint64_t{1}; });
}

// The three filters after the temperature work on integers of this unit.
constexpr float MASS_UNIT = 0x1p45f;
__device__ __forceinline__ uint64_t mass_of(float x) { return __float2ull_rn(expf(x) * MASS_UNIT); }

// The smallest integer that is not below `mass`, at least 1.
__device__ __forceinline__ uint64_t mass_limit(double mass) {
  const double units = ceil(mass * static_cast<double>(MASS_UNIT));
  return units < 1 ? 1 : __double2ull_rn(units);
}

// Draws from what the filters of `s` leave. All threads of the block get the token.
__device__ __forceinline__ int filtered_draw(const moela_sampling& s, uint32_t index, Candidates& c,
                                             FilterRoom& room) {
  uint64_t whole, n;
  if (s.top_k > 0 && s.top_k < c.vocab) {
    Candidates logits = c;
    // Counted before the division, which might round different logits to equal ones.
    const uint64_t cut = largest_n(logits, room, s.top_k);
    c.n_list = logits.n_list;
    if (cut != ALL_KEYS) c.at_least = from_ordered(~static_cast<uint32_t>(cut >> TOKEN_BITS));
  }
  if (s.top_p < 1) {
    uint64_t mass = 0, count = 0;
    for_each(c, room, [&](int, float, float x) {
      mass += mass_of(x);
      count++;
    });
    sum_before(mass, room, whole);
    sum_before(count, room, n);
    const double p = s.top_p, sum = static_cast<double>(whole) / MASS_UNIT;
    // All tokens below this together are less than what may be missing: none can be needed.
    const double floor = log((1 - p) * sum / static_cast<double>(n)) - 1e-3;
    const double logit = c.largest + floor / c.factor;
    Candidates likely = c;
    likely.floor = floor;
    likely.at_least = fmaxf(likely.at_least, __double2float_rd(logit - 1e-3 / c.factor));
    make_list(likely, room);
    c.cut = last_taken(
        likely, room, PROBABILITY_BITS, mass_limit(p * sum),
        [](int token, float, float x) { return Candidates::by_probability(token, x); },
        [](int, float x) { return mass_of(x); });
    if (c.cut != ALL_KEYS) {
      c.n_list = likely.n_list;
      c.at_least = likely.at_least;
    }
  }
  if (s.min_p > 0) c.floor = fmin(log(static_cast<double>(s.min_p)), 0.0);
  if (s.typical_p < 1) {
    uint64_t mass = 0, surprises = 0;
    for_each(c, room, [&](int, float, float x) { mass += mass_of(x); });
    sum_before(mass, room, whole);
    c.normaliser = log(static_cast<double>(whole) / MASS_UNIT);
    for_each(c, room, [&](int, float, float x) {
      const double surprise = c.normaliser - x;
      if (surprise < 60) surprises += __double2ull_rn(exp(-surprise) * surprise * MASS_UNIT);
    });
    sum_before(surprises, room, whole);
    c.entropy = static_cast<double>(whole) / MASS_UNIT;
    const double normaliser = c.normaliser;
    const Candidates distances = c;
    c.typical = last_taken(
        distances, room, DISTANCE_BITS, mass_limit(s.typical_p),
        [distances](int token, float, float x) { return distances.by_distance(token, x); },
        [normaliser](int, float x) {
          return __double2ull_rn(exp(x - normaliser) * static_cast<double>(MASS_UNIT));
        });
  }
  Draw best{0, -1};
  for_each(c, room, [&](int token, float, float x) {
    const float floor = best.token < 0 ? NEVER : static_cast<float>(best.score) - 1e-4f;
    consider(best, floor, x, token, s.seed, index);
  });
  best = warp_best(best);
  __syncthreads();
  if (threadIdx.x % 32 == 0) room.draws[threadIdx.x / 32] = best;
  __syncthreads();
  best = warp_best(room.draws[threadIdx.x % 32]);
  return max(best.token, 0);
}

}  // namespace moela::cuda
