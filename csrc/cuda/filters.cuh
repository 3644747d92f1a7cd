// Top-k, top-p, min-p and typical-p on the device, with the cuts of cpu/filters.cc: by descending
// probability (typical-p: by ascending distance of the surprise from the entropy), then by
// ascending token. A block a row. Nothing is sorted but the few tokens at a cut: tokens are
// counted, or their probabilities summed, by the leading bits of a key that orders them, until few
// are left in question. Sums are integers (probability * 2^45), so that their order does not
// matter.
#pragma once

#include "cuda/candidates.cuh"

namespace moela::cuda {

// Of the n keys in room.keys, the last that is taken: see last_taken(). `before`: the sum of what
// comes before them. ALL_KEYS when all are taken.
template <class Mass>
__device__ __forceinline__ uint64_t last_of(const Candidates& c, FilterRoom& room, uint64_t limit,
                                            uint64_t before, int n, const Mass& mass) {
  const int thread = threadIdx.x;
  sort_keys(room, n);
  if (thread == 0) room.cut = ALL_KEYS;
  uint64_t masses[2], whole;
  for (int i = 0; i < 2; i++) {
    const int at = 2 * thread + i;
    masses[i] = 0;
    if (at < n) {
      const int token = static_cast<int>(room.keys[at] & TOKEN_MASK);
      masses[i] = mass(token, c.raw || c.unscaled ? 0.0f : c.scaled(c.row[token]));
    }
  }
  uint64_t sum = before + sum_before(masses[0] + masses[1], room, whole);
  for (int i = 0; i < 2; i++) {
    if (sum < limit && sum + masses[i] >= limit) room.cut = room.keys[2 * thread + i];
    sum += masses[i];
  }
  __syncthreads();
  return room.cut;
}

// Taking candidates in ascending order of their keys [0, 2^bits), the low bits of which are the
// token, while the sum of `mass` over those before is below `limit` (>= 1): the last key taken, or
// ALL_KEYS when all are.
template <class Key, class Mass>
__device__ __noinline__ uint64_t last_taken(const Candidates& c, FilterRoom& room, int bits,
                                            uint64_t limit, const Key key, const Mass mass) {
  const int thread = threadIdx.x;
  uint64_t prefix = 0, before = 0, whole;
  const bool few = c.n_list >= 0 && c.n_list <= FILTER_BINS;
  for (int undecided = bits; undecided > 0;) {
    if (few) {
      // They can be sorted at once.
      return last_of(c, room, limit, 0, collect(c, room, key, [](uint64_t) { return true; }), mass);
    }
    const int width = min(11, undecided), shift = undecided - width;
    __syncthreads();
    for (int i = thread; i < FILTER_BINS; i += FILTER_THREADS) {
      room.bins.low[i] = room.bins.high[i] = room.counts[i] = 0;
    }
    if (thread == 0) room.bin = -1;
    __syncthreads();
    for_each(c, [&](int token, float v, float x) {
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
    return last_of(c, room, limit, before,
                   collect(c, room, key, [&](uint64_t k) { return k >> undecided == prefix; }),
                   mass);
  }
  return prefix;
}

// Something that the n-th largest of the block's values (ordered(), `EACH` a thread) is at least,
// close below it; 0 when there are too few.
template <int EACH>
__device__ __forceinline__ uint32_t nth_largest(const uint32_t (&values)[EACH], int n) {
  uint32_t found = 0;
  for (int bit = 31; bit >= 10; bit--) {
    const uint32_t tried = found | 1u << bit;
    int reach = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) reach += __syncthreads_count(values[i] >= tried);
    if (reach >= n) found = tried;
  }
  return found;
}
__device__ __forceinline__ float at_least_of(uint32_t key) {
  return key <= ordered(NEVER) ? NEVER : from_ordered(key);
}

// The n-th largest logit among the candidates, or something below it, from the threads' largest.
__device__ __forceinline__ float nth_largest(const Candidates& c, int n) {
  if (n > FILTER_THREADS || c.n_list >= 0) return c.at_least;
  uint32_t best[1] = {0};
  for_each(c, [&](int, float v, float) { best[0] = max(best[0], ordered(v)); });
  return fmaxf(c.at_least, at_least_of(nth_largest(best, n)));
}

// Tokens up to this key of by_logit() are the n largest.
__device__ __forceinline__ uint64_t largest_n(Candidates& c, FilterRoom& room, int n) {
  c.at_least = nth_largest(c, n);
  make_list(c, room);
  return last_taken(
      c, room, LOGIT_BITS, n,
      [](int token, float v, float) { return Candidates::by_logit(token, v); },
      [](int, float) { return uint64_t{1}; });
}

// The smallest integer that is not below `mass`, at least 1.
__device__ __forceinline__ uint64_t mass_limit(double mass) {
  const double units = ceil(mass * static_cast<double>(MASS_UNIT));
  return units < 1 ? 1 : __double2ull_rn(units);
}

// Where top-p's last token must be: all tokens of lower scaled logits together are less than what
// may be missing. `sum`: at most the sum of exp of all n.
__device__ __forceinline__ double top_p_floor(double p, double sum, double n) {
  return log((1 - p) * sum / n) - 1e-3;
}
// The same for logits, rounded down.
__device__ __forceinline__ float floor_logit(const Candidates& c, double floor) {
  return __double2float_rd(c.largest + (floor - 1e-3) / c.factor);
}

// Draws from what the filters of `s` leave. `whole`: the sum of mass_of() over the whole row, where
// top-p applies and top-k does not. All threads of the block get the token.
inline __device__ __noinline__ int filtered_draw(const moela_sampling& s, uint32_t index,
                                                 uint64_t whole, Candidates& c, FilterRoom& room) {
  const bool counts = s.top_k > 0 && s.top_k < c.vocab;
  if (counts) {
    // Before the division, which might round different logits to equal ones.
    c.unscaled = true;
    const uint64_t cut = largest_n(c, room, s.top_k);
    c.unscaled = false;
    if (cut != ALL_KEYS) c.at_least = from_ordered(~static_cast<uint32_t>(cut >> TOKEN_BITS));
  }
  if (s.top_p < 1) {
    if (counts) {
      uint64_t mass = 0;
      for_each(c, [&](int, float, float x) { mass += mass_of(x); });
      sum_before(mass, room, whole);
    }
    const double p = s.top_p, sum = static_cast<double>(whole) / MASS_UNIT;
    Candidates likely = c;
    likely.floor = top_p_floor(p, sum, c.vocab);
    likely.at_least = fmaxf(likely.at_least, floor_logit(c, likely.floor));
    make_list(likely, room);
    c.cut = last_taken(
        likely, room, PROBABILITY_BITS, mass_limit(p * sum),
        [](int token, float, float x) { return Candidates::by_probability(token, x); },
        [](int, float x) { return mass_of(x); });
    c.n_list = likely.n_list;
    c.list = likely.list;
    c.at_least = likely.at_least;
    c.floor = likely.floor;
  }
  if (s.min_p > 0) c.floor = fmax(c.floor, fmin(log(static_cast<double>(s.min_p)), 0.0));
  if (s.typical_p < 1) {
    uint64_t mass = 0, surprises = 0;
    for_each(c, [&](int, float, float x) { mass += mass_of(x); });
    sum_before(mass, room, whole);
    c.normaliser = log(static_cast<double>(whole) / MASS_UNIT);
    for_each(c, [&](int, float, float x) {
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
  float floor = NEVER;
  for_each(c, [&](int token, float, float x) {
    if (x + MAX_GUMBEL < floor) return;
    const uint32_t word = noise_word(s.seed, index, static_cast<uint32_t>(token));
    if (!may_reach(floor, x, word)) return;
    best = better(best, {x + gumbel(word), token});
    floor = floor_of(best.score);
  });
  best = warp_best(best);
  __syncthreads();
  if (threadIdx.x % 32 == 0) room.draws[threadIdx.x / 32] = best;
  __syncthreads();
  best = warp_best(room.draws[threadIdx.x % 32]);
  return max(best.token, 0);
}

}  // namespace moela::cuda
