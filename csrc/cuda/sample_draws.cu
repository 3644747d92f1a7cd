// The second kernel of sample(): draws without filters, and lists of likely tokens for those with.
// See sample.cu.
#include "cuda/sample.cuh"

namespace moela::cuda {
namespace {

constexpr int DRAW_THREADS = 1024;
constexpr int DRAW_EACH = static_cast<int>(VOCAB_SLICE) / DRAW_THREADS;
constexpr int MOST_GROUPS = static_cast<int>(MOST_VOCAB / VOCAB_SLICE) * GROUPS;
constexpr int GROUPS_EACH = MOST_GROUPS / DRAW_THREADS;
static_assert(DRAW_EACH == 4);

struct DrawRoom {
  Draw draws[32];
  uint64_t sums[32];
  float floor;
};

// This thread's tokens of a slice are [token, token + 4).
__device__ __forceinline__ void load_four(const float* row, int token, int vocab, float (&x)[4]) {
  if (vocab % 4 == 0 && token < vocab) {
    const float4 v = *reinterpret_cast<const float4*>(row + token);
    x[0] = v.x;
    x[1] = v.y;
    x[2] = v.z;
    x[3] = v.w;
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; j++) x[j] = token + j < vocab ? row[token + j] : NEVER;
}

__device__ __forceinline__ void load_groups(const float* groups, int n, float (&x)[GROUPS_EACH]) {
#pragma unroll
  for (int i = 0; i < GROUPS_EACH; i++) {
    const int at = threadIdx.x + i * DRAW_THREADS;
    x[i] = at < n ? groups[at] : NEVER;
  }
}
// What the n-th largest logit is at least.
__device__ __forceinline__ float bound_of(const float (&groups)[GROUPS_EACH], int n_groups, int n) {
  uint32_t keys[GROUPS_EACH];
#pragma unroll
  for (int i = 0; i < GROUPS_EACH; i++) keys[i] = ordered(groups[i]);
  if (n_groups <= DRAW_THREADS) {
    const uint32_t one[1] = {keys[0]};
    return at_least_of(nth_largest(one, n));
  }
  return at_least_of(nth_largest(keys, n));
}

// Of the block, on all threads.
__device__ __forceinline__ uint64_t block_sum(uint64_t value, DrawRoom& room) {
#pragma unroll
  for (int s = 16; s > 0; s /= 2) value += __shfl_xor_sync(~0u, value, s);
  __syncthreads();
  if (threadIdx.x % 32 == 0) room.sums[threadIdx.x / 32] = value;
  __syncthreads();
  value = room.sums[threadIdx.x % 32];
#pragma unroll
  for (int s = 16; s > 0; s /= 2) value += __shfl_xor_sync(~0u, value, s);
  return value;
}

// Appends this thread's tokens that are `in` to a list, in no order; `count` goes beyond what the
// list can hold when it is full.
__device__ __forceinline__ void append(int token, const bool (&in)[4], int32_t* list, int most,
                                       int32_t* count) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const uint32_t all = __ballot_sync(~0u, in[j]);
    if (all == 0) continue;
    int first = 0;
    if (lane == 0) first = atomicAdd(count, __popc(all));
    const int at = __shfl_sync(~0u, first, 0) + __popc(all & ((1u << lane) - 1));
    if (in[j] && at < most) list[at] = token + j;
  }
}

// The best draw of a slice, on thread 0.
__device__ __forceinline__ Draw slice_draw(const Candidates& c, const moela_sampling& s,
                                           uint32_t index, int likely, int token,
                                           const float (&logits)[4], DrawRoom& room) {
  uint32_t words[4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    words[j] = noise_word(s.seed, index, static_cast<uint32_t>(token + j));
  }
  // The most likely token's own score is in reach of the row.
  if (threadIdx.x < 32) {
    const double score = gumbel(noise_word(s.seed, index, static_cast<uint32_t>(likely)));
    if (threadIdx.x == 0) room.floor = floor_of(score);
  }
  __syncthreads();
  const float floor = room.floor, factor = static_cast<float>(c.factor);
  const double least = s.min_p > 0 ? fmin(log(static_cast<double>(s.min_p)), 0.0) : NEVER;
  Draw best{0, -1};
#pragma unroll
  for (int j = 0; j < 4; j++) {
    if (!(logits[j] > NEVER) || !may_reach(floor, (logits[j] - c.largest) * factor, words[j])) {
      continue;
    }
    const float x = c.scaled(logits[j]);
    if (x > NEVER && x >= least) best = better(best, {x + gumbel(words[j]), token + j});
  }
  best = warp_best(best);
  if (threadIdx.x % 32 == 0) room.draws[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x < 32) best = warp_best(room.draws[threadIdx.x]);
  return best;
}

__global__ void __launch_bounds__(DRAW_THREADS)
    draws_kernel(const __grid_constant__ SampleArguments a) {
  __shared__ DrawRoom room;
  wait_for_previous();
  allow_next();
  const int row = blockIdx.y, slice = blockIdx.x, thread = threadIdx.x;
  if (row >= a.step.counts->n_logits) return;
  const moela_sampling& s = a.outputs.samplings[row];
  const int token = slice * static_cast<int>(VOCAB_SLICE) + 4 * thread;
  const int64_t groups_at = static_cast<int64_t>(row) * a.n_slices * GROUPS;
  const int n_groups = a.n_slices * GROUPS;
  SampleRow& state = a.states[row];
  float x[4], groups[GROUPS_EACH];
  bool in[4];
  if (s.top_logprobs > 0) {
    load_four(a.logits + static_cast<int64_t>(row) * a.vocab, token, a.vocab, x);
    load_groups(a.raw_groups + groups_at, n_groups, groups);
    const float bound = bound_of(groups, n_groups, s.top_logprobs);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      in[j] = token + j < a.vocab && (isnan(x[j]) ? NEVER : x[j]) >= bound;
    }
    append(token, in, a.top + row * TOP_TOKENS, TOP_TOKENS, &state.n_top);
  }
  if (s.temperature == 0) return;
  SampleSlice* slices = a.slices + static_cast<int64_t>(row) * a.n_slices;
  const int n_drawn = a.n_drawn();
  load_four(processed_row(a, s, row, n_drawn), token, a.vocab, x);
  const uint64_t largest = row_largest(slices, a.n_slices);
  if (largest == 0) {
    if (thread == 0) slices[slice].draw = {0, -1};
    return;
  }
  const Candidates c = candidates_of(a, s, nullptr, largest);
  if (!filters(s)) {
    const Draw best = slice_draw(c, s, static_cast<uint32_t>(s.index + n_drawn), key_token(largest),
                                 token, x, room);
    if (thread == 0) slices[slice].draw = best;
    return;
  }
  const bool by_count = counts(s, a.vocab);
  if (!by_count && s.top_p >= 1) return;
  load_groups(a.groups + groups_at, n_groups, groups);
  float bound;
  if (by_count) {
    bound = bound_of(groups, n_groups, s.top_k);
  } else {
    const auto mass = [&](float v) { return v > NEVER ? mass_of(c.scaled(v)) : uint64_t{0}; };
    const uint64_t own = block_sum(mass(x[0]) + mass(x[1]) + mass(x[2]) + mass(x[3]), room);
    if (thread == 0) atomicAdd(reinterpret_cast<unsigned long long*>(&state.whole), own);
    // The groups' largest are a part of the whole.
    uint64_t part = 0;
#pragma unroll
    for (int i = 0; i < GROUPS_EACH; i++) part += mass(groups[i]);
    const double sum = static_cast<double>(block_sum(part, room)) / MASS_UNIT;
    bound = floor_logit(c, top_p_floor(s.top_p, sum, a.vocab));
  }
#pragma unroll
  for (int j = 0; j < 4; j++) in[j] = x[j] > NEVER && x[j] >= bound;
  append(token, in, a.likely + row * LIKELY_TOKENS, LIKELY_TOKENS, &state.n_likely);
}

}  // namespace

void sample_draws(const Launch& at, const SampleArguments& a) {
  launch(at, draws_kernel, dim3(a.n_slices, at.bucket), dim3(DRAW_THREADS), 0, a);
}

}  // namespace moela::cuda
