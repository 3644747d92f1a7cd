// What the kernels of sample() share: see sample.cu.
#pragma once

#include "cuda/filters.cuh"

namespace moela::cuda {

struct SampleSlice {
  SliceSum sum;      // of the raw logits
  uint64_t largest;  // ordered(logit), then the lowest token; 0: none above -inf
  Draw draw;
};
struct SampleRow {
  uint64_t whole;  // sum of mass_of() where top-p wants it
  int32_t n_likely, n_top, reserved[4];
};
static_assert(sizeof(SampleRow) == ROW_STATE_BYTES && sizeof(SampleSlice) == SLICE_BYTES);

constexpr int GROUPS = static_cast<int>(SLICE_GROUPS);  // of a slice

struct SampleArguments {
  Step step;
  Outputs outputs;
  const float* logits;
  int vocab, n_slices;
  SampleRow* states;           // [rows]
  SampleSlice* slices;         // [rows, n_slices]
  float *raw_groups, *groups;  // [rows, n_slices, GROUPS]: the largest of each, before and after
  int32_t* likely;             // [rows, LIKELY_TOKENS]
  int32_t* top;                // [rows, TOP_TOKENS]
  float* processed;            // [rows, vocab]

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
__device__ __forceinline__ bool counts(const moela_sampling& s, int vocab) {
  return s.top_k > 0 && s.top_k < vocab;
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
__device__ __forceinline__ uint64_t row_largest(const SampleSlice* slices, int n) {
  uint64_t key = 0;
  for (int i = threadIdx.x % 32; i < n; i += 32) key = max(key, slices[i].largest);
  return warp_largest(key);
}

// The candidates of a row before any filter.
__device__ __forceinline__ Candidates candidates_of(const SampleArguments& a,
                                                    const moela_sampling& s, const float* row,
                                                    uint64_t largest) {
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
__device__ __forceinline__ const float* processed_row(const SampleArguments& a,
                                                      const moela_sampling& s, int row,
                                                      int n_drawn) {
  return (changes_logits(s, n_drawn) ? a.processed : a.logits) +
         static_cast<int64_t>(row) * a.vocab;
}

// The first two kernels, a block a slice of a row.
void sample_slices(const Launch& at, const SampleArguments& a);
void sample_draws(const Launch& at, const SampleArguments& a);

}  // namespace moela::cuda
