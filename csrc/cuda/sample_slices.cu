// The first kernel of sample(): what changes logits, and the largest of them. See sample.cu.
#include "cuda/sample.cuh"

namespace moela::cuda {
namespace {

struct SliceRoom {
  float x[VOCAB_SLICE];
  uint32_t seen[VOCAB_SLICE];  // times in the output; the top bit: in the prompt
};

// Bias, penalties, mask and stop tokens on a slice in shared memory, as process_logits() on the
// CPU.
__device__ __noinline__ void process_slice(const SampleArguments& a, const moela_sampling& s,
                                           int row, int n_drawn, int begin, SliceRoom& room) {
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
    constexpr int AHEAD = 8;
    for (int base = thread; base < n_kept; base += AHEAD * SLICE_THREADS) {
      int at[AHEAD];
#pragma unroll
      for (int j = 0; j < AHEAD; j++) {
        const int i = base + j * SLICE_THREADS;
        at[j] = i < n_kept ? history[i] - begin : -1;
      }
#pragma unroll
      for (int j = 0; j < AHEAD; j++) {
        if (at[j] < 0 || at[j] >= n) continue;
        if (base + j * SLICE_THREADS < s.n_prompt) {
          atomicOr(&room.seen[at[j]], PROMPT);
        } else {
          atomicAdd(&room.seen[at[j]], 1u);
        }
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

// The largest of each group of a slice: 8 threads' elements.
__device__ __forceinline__ void write_groups(const float (&x)[SLICE_EACH], float* groups) {
  float largest = NEVER;
#pragma unroll
  for (int j = 0; j < SLICE_EACH; j++) largest = fmaxf(largest, x[j]);
  constexpr int THREADS = SLICE_THREADS / GROUPS;
#pragma unroll
  for (int s = THREADS / 2; s > 0; s /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, s));
  }
  if (threadIdx.x % THREADS == 0) groups[threadIdx.x / THREADS] = largest;
}

__global__ void __launch_bounds__(SLICE_THREADS)
    slices_kernel(const __grid_constant__ SampleArguments a) {
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
  const int64_t index = static_cast<int64_t>(row) * a.n_slices + slice;
  SampleSlice& out = a.slices[index];
  if (slice == 0 && thread == 0) a.states[row] = SampleRow{};
  if (s.top_logprobs > 0) write_groups(x, a.raw_groups + index * GROUPS);
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
  if (filters(s)) write_groups(x, a.groups + index * GROUPS);
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

}  // namespace

void sample_slices(const Launch& at, const SampleArguments& a) {
  launch(at, slices_kernel, dim3(a.n_slices, at.bucket), dim3(SLICE_THREADS), 0, a);
}

}  // namespace moela::cuda
