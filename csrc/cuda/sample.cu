// Draws the next token of each logits row: Gumbel-max over what the filters leave, with the noise
// of cpu/sample.cc and the same results. Three kernels, none of which waits for the host:
// 1. a block a slice of the vocabulary: bias, penalties, mask and stop tokens into a copy of the
//    logits where a row has any; the slice's largest; its part of the log-softmax where wanted;
// 2. a block a slice: the slice's best draw, for rows that no filter but min-p applies to;
// 3. a block a row: merges the slices, or applies the filters and draws; writes the entry.
// What a row has none of costs it nothing but the launch.
#include "cuda/filters.cuh"

namespace moela::cuda {
namespace {

struct Slice {
  SliceSum sum;      // of the raw logits
  uint64_t largest;  // ordered(logit), then the lowest token; 0: none above -inf
  Draw draw;
};
static_assert(sizeof(Slice) == 32, "see sample_scratch()");

struct Arguments {
  Step step;
  Outputs outputs;
  const float* logits;
  int vocab, n_slices;
  Slice* slices;     // [rows, n_slices]
  float* processed;  // [rows, vocab]

  __device__ const int32_t* aux(int offset) const { return outputs.aux + offset; }
  __device__ int n_drawn() const { return outputs.n_drawn ? *outputs.n_drawn : 0; }
};

__device__ __forceinline__ bool penalises(const moela_sampling& s) {
  return s.repetition_penalty != 1 || s.presence_penalty != 0 || s.frequency_penalty != 0;
}
__device__ __forceinline__ bool changes_logits(const moela_sampling& s, int n_drawn) {
  return s.n_bias > 0 || s.mask >= 0 || penalises(s) ||
         (s.n_stop > 0 && s.index + n_drawn < s.min_index);
}
__device__ __forceinline__ bool filters(const moela_sampling& s) {
  return s.temperature != 0 && (s.top_k > 0 || s.top_p < 1 || s.typical_p < 1);
}
__device__ __forceinline__ uint64_t largest_key(float x, int token) {
  return x > NEVER ? static_cast<uint64_t>(ordered(x)) << 32 | (0xffffffffu - token) : 0;
}
__device__ __forceinline__ int key_token(uint64_t key) {
  return static_cast<int>(0xffffffffu - static_cast<uint32_t>(key));
}
__device__ __forceinline__ uint64_t warp_largest(uint64_t key) {
#pragma unroll
  for (int s = 16; s > 0; s /= 2) key = max(key, __shfl_xor_sync(~0u, key, s));
  return key;
}
// Of a row, on all lanes.
__device__ __forceinline__ uint64_t row_largest(const Slice* slices, int n) {
  uint64_t key = 0;
  for (int i = threadIdx.x % 32; i < n; i += 32) key = max(key, slices[i].largest);
  return warp_largest(key);
}

struct SliceRoom {
  float x[VOCAB_SLICE];
  uint32_t seen[VOCAB_SLICE];  // times in the output; the top bit: in the prompt
};

// Bias, penalties, mask and stop tokens on a slice in shared memory, as process_logits() on the
// CPU.
__device__ __noinline__ void process_slice(const Arguments& a, const moela_sampling& s, int row,
                                           int n_drawn, int begin, SliceRoom& room) {
  constexpr uint32_t PROMPT = 0x80000000u;
  const int thread = threadIdx.x, n = static_cast<int>(VOCAB_SLICE);
  // A thread has the tokens that leave its number, so that a list is applied in its own order.
  for (int i = 0; i < s.n_bias; i++) {
    const int at = a.aux(s.bias)[2 * i] - begin;
    if (at >= 0 && at < n && at % SLICE_THREADS == thread) {
      room.x[at] = __fadd_rn(room.x[at], __int_as_float(a.aux(s.bias)[2 * i + 1]));
    }
  }
  if (penalises(s)) {
    for (int i = thread; i < n; i += SLICE_THREADS) room.seen[i] = 0;
    __syncthreads();
    const int32_t* history = a.aux(s.history);
    const int n_kept = s.n_prompt + s.n_output;
    for (int i = thread; i < n_kept; i += SLICE_THREADS) {
      const int at = history[i] - begin;
      if (at < 0 || at >= n) continue;
      if (i < s.n_prompt) {
        atomicOr(&room.seen[at], PROMPT);
      } else {
        atomicAdd(&room.seen[at], 1u);
      }
    }
    const int32_t* drawn = a.outputs.drawn + static_cast<int64_t>(row) * a.outputs.drawn_stride;
    for (int i = thread; i < n_drawn; i += SLICE_THREADS) {
      const int at = drawn[i] - begin;
      if (at >= 0 && at < n) atomicAdd(&room.seen[at], 1u);
    }
    __syncthreads();
    for (int i = thread; i < n; i += SLICE_THREADS) {
      const uint32_t seen = room.seen[i];
      if (seen == 0) continue;
      float x = room.x[i];
      if (s.repetition_penalty != 1) {
        x = x < 0 ? __fmul_rn(x, s.repetition_penalty) : __fdiv_rn(x, s.repetition_penalty);
      }
      const uint32_t times = seen & ~PROMPT;
      if (times > 0 && (s.presence_penalty != 0 || s.frequency_penalty != 0)) {
        x = __fsub_rn(x, __fadd_rn(__fmul_rn(static_cast<float>(times), s.frequency_penalty),
                                   s.presence_penalty));
      }
      room.x[i] = x;
    }
  }
  if (s.mask >= 0) {
    for (int i = thread; i < n && begin + i < a.vocab; i += SLICE_THREADS) {
      const uint32_t word = static_cast<uint32_t>(a.aux(s.mask)[(begin + i) / 32]);
      if (!(word >> (begin + i) % 32 & 1)) room.x[i] = NEVER;
    }
  }
  if (s.index + n_drawn < s.min_index) {
    __syncthreads();
    for (int i = thread; i < s.n_stop; i += SLICE_THREADS) {
      const int at = a.aux(s.stop)[i] - begin;
      if (at >= 0 && at < n) room.x[at] = NEVER;
    }
  }
}

__global__ void __launch_bounds__(SLICE_THREADS)
    sample_slices(const __grid_constant__ Arguments a) {
  __shared__ SliceRoom room;
  __shared__ float sums[16];
  __shared__ uint64_t keys[SLICE_THREADS / 32];
  wait_for_previous();
  allow_next();
  const int row = blockIdx.y, slice = blockIdx.x, thread = threadIdx.x;
  if (row >= a.step.counts->n_logits) return;
  const moela_sampling& s = a.outputs.samplings[row];
  const int n_drawn = a.n_drawn();
  float x[SLICE_EACH];
  load_slice(a.logits + static_cast<int64_t>(row) * a.vocab, slice, a.vocab, x);
  Slice& out = a.slices[static_cast<int64_t>(row) * a.n_slices + slice];
  if (s.top_logprobs >= 0) {
    const SliceSum sum = slice_sum(x, sums);
    if (thread == 0) out.sum = sum;
  }
  if (changes_logits(s, n_drawn)) {
    const int begin = slice * static_cast<int>(VOCAB_SLICE);
#pragma unroll
    for (int j = 0; j < SLICE_EACH; j++) room.x[slice_token(slice, j) - begin] = x[j];
    __syncthreads();
    process_slice(a, s, row, n_drawn, begin, room);
    __syncthreads();
    float* to = a.processed + static_cast<int64_t>(row) * a.vocab;
#pragma unroll
    for (int j = 0; j < SLICE_EACH; j++) {
      const int token = slice_token(slice, j);
      x[j] = room.x[token - begin];
      if (token < a.vocab) to[token] = x[j];
    }
  }
  uint64_t key = 0;
#pragma unroll
  for (int j = 0; j < SLICE_EACH; j++) {
    const int token = slice_token(slice, j);
    if (token < a.vocab) key = max(key, largest_key(x[j], token));
  }
  key = warp_largest(key);
  if (thread % 32 == 0) keys[thread / 32] = key;
  __syncthreads();
  if (thread == 0) {
    for (int i = 1; i < SLICE_THREADS / 32; i++) key = max(key, keys[i]);
    out.largest = key;
  }
}

// The candidates of a row before any filter.
__device__ __forceinline__ Candidates candidates_of(const Arguments& a, const moela_sampling& s,
                                                    const float* row, uint64_t largest) {
  Candidates c{};
  c.row = row;
  c.vocab = a.vocab;
  c.largest = from_ordered(static_cast<uint32_t>(largest >> 32));
  c.factor = 1 / static_cast<double>(s.temperature);
  c.at_least = NEVER;
  c.cut = c.typical = ALL_KEYS;
  c.floor = NEVER;
  c.n_list = -1;
  return c;
}
__device__ __forceinline__ const float* processed_row(const Arguments& a, const moela_sampling& s,
                                                      int row, int n_drawn) {
  return (changes_logits(s, n_drawn) ? a.processed : a.logits) +
         static_cast<int64_t>(row) * a.vocab;
}

__global__ void __launch_bounds__(SLICE_THREADS) sample_draws(const __grid_constant__ Arguments a) {
  __shared__ Draw draws[SLICE_THREADS / 32];
  wait_for_previous();
  allow_next();
  const int row = blockIdx.y, slice = blockIdx.x, thread = threadIdx.x;
  if (row >= a.step.counts->n_logits) return;
  const moela_sampling& s = a.outputs.samplings[row];
  if (s.temperature == 0 || filters(s)) return;
  const int n_drawn = a.n_drawn();
  Slice* slices = a.slices + static_cast<int64_t>(row) * a.n_slices;
  float logits[SLICE_EACH];
  load_slice(processed_row(a, s, row, n_drawn), slice, a.vocab, logits);
  const uint64_t largest = row_largest(slices, a.n_slices);
  const uint32_t index = static_cast<uint32_t>(s.index + n_drawn);
  Draw best{0, -1};
  if (largest != 0) {
    const Candidates c = candidates_of(a, s, nullptr, largest);
    // The most likely token's own score is in reach: what cannot beat it needs no noise.
    const int likely = key_token(largest);
    const double reached = gumbel(noise_word(s.seed, index, static_cast<uint32_t>(likely)));
    const float floor = static_cast<float>(reached) - 1e-4f;
    const double least = s.min_p > 0 ? fmin(log(static_cast<double>(s.min_p)), 0.0) : NEVER;
#pragma unroll
    for (int j = 0; j < SLICE_EACH; j++) {
      if (!(logits[j] > NEVER)) continue;
      const float x = c.scaled(logits[j]);
      if (!(x > NEVER) || x < least) continue;
      consider(best, floor, x, slice_token(slice, j), s.seed, index);
    }
  }
  best = warp_best(best);
  if (thread % 32 == 0) draws[thread / 32] = best;
  __syncthreads();
  if (thread == 0) {
    for (int i = 1; i < SLICE_THREADS / 32; i++) best = better(best, draws[i]);
    slices[slice].draw = best;
  }
}

// The largest of those that a mask allows, whatever its value.
__device__ __noinline__ int likeliest_allowed(const float* row, int vocab, const int32_t* mask,
                                              FilterRoom& room) {
  uint64_t key = 0;
  for (int t = threadIdx.x; t < vocab; t += FILTER_THREADS) {
    if (!(static_cast<uint32_t>(mask[t / 32]) >> t % 32 & 1)) continue;
    const float x = isnan(row[t]) ? NEVER : row[t];
    key = max(key, static_cast<uint64_t>(ordered(x)) << 32 | (0xffffffffu - t));
  }
  key = warp_largest(key);
  __syncthreads();
  if (threadIdx.x % 32 == 0) room.partial[threadIdx.x / 32] = key;
  __syncthreads();
  key = warp_largest(room.partial[threadIdx.x % 32]);
  return key == 0 ? 0 : key_token(key);
}

// The n largest logits as (token, log-softmax), descending, the lowest of equals first.
__device__ __noinline__ void write_top(const float* row, int vocab, double normaliser, int n,
                                       FilterRoom& room, int32_t* out) {
  Candidates c{};
  c.row = row;
  c.vocab = vocab;
  c.raw = true;
  c.at_least = NEVER;
  c.n_list = -1;
  const uint64_t cut = largest_n(c, room, n);
  const auto key = [](int token, float v, float) { return Candidates::by_logit(token, v); };
  const int found = collect(c, room, key, [&](uint64_t k) { return k <= cut; });
  sort_keys(room, found);
  for (int i = threadIdx.x; i < min(n, found); i += FILTER_THREADS) {
    const int token = static_cast<int>(room.keys[i] & TOKEN_MASK);
    const float v = isnan(row[token]) ? NEVER : row[token];
    out[2 * i] = token;
    out[2 * i + 1] = __float_as_int(static_cast<float>(v - normaliser));
  }
}

__global__ void __launch_bounds__(FILTER_THREADS) sample_rows(const __grid_constant__ Arguments a) {
  __shared__ FilterRoom room;
  wait_for_previous();
  allow_next();
  const int row = blockIdx.x, thread = threadIdx.x;
  if (row >= a.step.counts->n_logits) return;
  const moela_sampling& s = a.outputs.samplings[row];
  const int n_drawn = a.n_drawn();
  const float* logits = a.logits + static_cast<int64_t>(row) * a.vocab;
  const float* processed = processed_row(a, s, row, n_drawn);
  const Slice* slices = a.slices + static_cast<int64_t>(row) * a.n_slices;
  const uint64_t largest = row_largest(slices, a.n_slices);
  int token = 0;
  if (largest == 0) {
    token = 0;  // nothing to choose from
  } else if (s.temperature == 0) {
    token = key_token(largest);
  } else if (!filters(s)) {
    Draw best{0, -1};
    for (int i = thread % 32; i < a.n_slices; i += 32) best = better(best, slices[i].draw);
    token = max(warp_best(best).token, 0);
  } else {
    Candidates c = candidates_of(a, s, processed, largest);
    token = filtered_draw(s, static_cast<uint32_t>(s.index + n_drawn), c, room);
  }
  // A mask wins over whatever forbids all that it allows.
  if (s.mask >= 0 && !(processed[token] > NEVER)) {
    token = likeliest_allowed(logits, a.vocab, a.aux(s.mask), room);
  }
  int stops = 0;
  for (int i = thread; i < s.n_stop; i += FILTER_THREADS) stops |= a.aux(s.stop)[i] == token;
  stops = s.n_stop > 0 ? __syncthreads_or(stops) : 0;
  int32_t* entry = a.outputs.entries + static_cast<int64_t>(row) * a.outputs.entry_words;
  if (thread == 0) {
    entry[0] = a.outputs.first_sampling + row;
    entry[1] = token;
    entry[2] = 0x7fc00000;
    entry[3] = stops != 0;
  }
  if (s.top_logprobs < 0) return;
  const double normaliser = merge_slices(slices, a.n_slices, sizeof(Slice));
  if (thread == 0) entry[2] = __float_as_int(static_cast<float>(logits[token] - normaliser));
  if (s.top_logprobs > 0) {
    write_top(logits, a.vocab, normaliser, s.top_logprobs, room, entry + 4);
  }
}

}  // namespace

void sample(const Launch& at, const Outputs& outputs, int64_t vocab, const float* logits) {
  if (!outputs.samplings || at.bucket == 0) return;
  if (vocab > MOST_VOCAB || outputs.entry_words > 4 + 2 * FILTER_BINS) {
    throw Error(MOELA_ERR_ARGUMENT,
                "sample: at most 262,144 tokens and 2,048 top log-probabilities on CUDA");
  }
  if (at.scratch_bytes < sample_scratch(vocab, at.bucket)) {
    throw Error(MOELA_ERR_INTERNAL, "sample: too little scratch memory");
  }
  Arguments a{};
  a.step = at.step;
  a.outputs = outputs;
  a.logits = logits;
  a.vocab = static_cast<int>(vocab);
  a.n_slices = static_cast<int>(vocab_slices(vocab));
  a.slices = reinterpret_cast<Slice*>(at.scratch);
  a.processed = reinterpret_cast<float*>(at.scratch + int64_t{at.bucket} * a.n_slices * 32);
  const dim3 grid(a.n_slices, at.bucket);
  launch(at, sample_slices, grid, dim3(SLICE_THREADS), 0, a);
  launch(at, sample_draws, grid, dim3(SLICE_THREADS), 0, a);
  launch(at, sample_rows, dim3(at.bucket), dim3(FILTER_THREADS), 0, a);
}

}  // namespace moela::cuda
