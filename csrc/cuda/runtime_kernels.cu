// Kernels of the runtime itself: generated weights, the bandwidth that benchmarks divide by, and
// what happens between two steps of one call.
#include <cuda_bf16.h>

#include "cuda/launch.h"
#include "cuda/runtime_device.h"
#include "cuda/runtime_model.h"

namespace moela::cuda {
namespace {

// As cpu/generate.cc, bit for bit.
__host__ __device__ inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdull;
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53ull;
  return x ^ (x >> 33);
}

constexpr float INVERSE_DEVIATION = 2.6428998e-5f;  // 1 / sqrt((65536^2 - 1) / 3)

template <class T>
__global__ void generate_kernel(uint64_t stream, float mean, float scale, int64_t count, T* out) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += stride) {
    const uint64_t hash = mix(stream + static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15ull);
    const int32_t sum = static_cast<int32_t>((hash & 0xffff) + ((hash >> 16) & 0xffff) +
                                             ((hash >> 32) & 0xffff) + (hash >> 48));
    const float x = __fadd_rn(__fmul_rn(static_cast<float>(sum - 2 * 65535), scale), mean);
    if constexpr (sizeof(T) == 4) {
      out[i] = x;
    } else {
      out[i] = __float2bfloat16_rn(x);
    }
  }
}

__global__ void read_kernel(const uint4* data, int64_t words, int* sink) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  uint32_t sum = 0;
  int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  for (; i + 3 * stride < words; i += 4 * stride) {
    uint4 word[4];
#pragma unroll
    for (int j = 0; j < 4; j++) word[j] = __ldcs(data + i + j * stride);
#pragma unroll
    for (int j = 0; j < 4; j++) sum |= word[j].x | word[j].y | word[j].z | word[j].w;
  }
  for (; i < words; i += stride) {
    const uint4 word = __ldcs(data + i);
    sum |= word.x | word.y | word.z | word.w;
  }
  if (sum) *sink = 1;
}

}  // namespace

void generate_weight(uint64_t seed, uint64_t key, int64_t count, float mean, float deviation,
                     int32_t dtype, void* out, cudaStream_t stream) {
  const uint64_t random = mix(mix(seed + 0x9e3779b97f4a7c15ull) ^ key);
  const float scale = deviation * INVERSE_DEVIATION;
  if (dtype == MOELA_F32) {
    launch(stream, generate_kernel<float>, 2048, 256, random, mean, scale, count,
           static_cast<float*>(out));
  } else {
    launch(stream, generate_kernel<__nv_bfloat16>, 2048, 256, random, mean, scale, count,
           static_cast<__nv_bfloat16*>(out));
  }
}

void read_all(const void* data, int64_t words, int32_t sms, int* sink, cudaStream_t stream) {
  launch(stream, read_kernel, sms * 4, 512, static_cast<const uint4*>(data), words, sink);
}

namespace {

constexpr int SAMPLING_WORDS = sizeof(moela_sampling) / 4;
constexpr int SEGMENT_WORDS = sizeof(moela_segment) / 4;

// One block, a thread a row. The entries of the step go to the host; then each token drawn becomes
// its row's next one, and rows that drew a stop token leave: those that stay move up, in order.
__global__ void __launch_bounds__(DECODE_CAPACITY) advance_kernel(Advance a) {
  __shared__ int kept_before[DECODE_CAPACITY / 32 + 1];
  wait_for_previous();
  const int row = threadIdx.x;
  StepState& state = *a.state;
  const int n = a.counts[0].n_rows;
  const int entries = state.entries, step = state.step, n_drawn = *a.n_drawn;
  const bool live = row < n;
  int32_t* entry = a.entries + static_cast<int64_t>(row) * a.entry_words;
  bool keeps = false;
  int token = 0, original = 0;
  if (live) {
    original = a.original[row];
    token = entry[1];
    keeps = entry[3] == 0;
    entry[0] = original;
  }
  __syncthreads();
  int32_t* host = state.host_entries + static_cast<int64_t>(entries) * a.entry_words;
  for (int i = row; i < n * a.entry_words; i += blockDim.x) host[i] = a.entries[i];

  // Where a row goes: how many before it stay.
  const uint32_t ballot = __ballot_sync(0xffffffff, keeps);
  if (row % 32 == 0) kept_before[row / 32 + 1] = __popc(ballot);
  __syncthreads();
  if (row == 0) {
    kept_before[0] = 0;
    for (int w = 0; w < DECODE_CAPACITY / 32; w++) kept_before[w + 1] += kept_before[w];
  }
  __syncthreads();
  const int place = kept_before[row / 32] + __popc(ballot & ((1u << row % 32) - 1));
  const int kept = kept_before[DECODE_CAPACITY / 32];

  int32_t segment[SEGMENT_WORDS];
  int position = 0;
  if (keeps) {
    const int32_t* from = reinterpret_cast<const int32_t*>(a.segments + row);
#pragma unroll
    for (int i = 0; i < SEGMENT_WORDS; i++) segment[i] = from[i];
    position = a.positions[row] + 1;
  }
  // Samplings move through registers some words at a time: all read, then all write.
  if (kept < n) {
    for (int i = 0; i < SAMPLING_WORDS; i++) {
      int32_t word = 0;
      if (keeps) word = reinterpret_cast<const int32_t*>(a.samplings + row)[i];
      __syncthreads();
      if (keeps) reinterpret_cast<int32_t*>(a.samplings + place)[i] = word;
      __syncthreads();
    }
    for (int i = 0; i < n_drawn; i++) {
      int32_t word = 0;
      if (keeps) word = a.drawn[static_cast<int64_t>(row) * a.drawn_stride + i];
      __syncthreads();
      if (keeps) a.drawn[static_cast<int64_t>(place) * a.drawn_stride + i] = word;
      __syncthreads();
    }
  }
  __syncthreads();
  if (keeps) {
    a.original[place] = original;
    a.tokens[place] = token;
    a.positions[place] = position;
    int32_t* to = reinterpret_cast<int32_t*>(a.segments + place);
#pragma unroll
    for (int i = 0; i < SEGMENT_WORDS; i++) to[i] = segment[i];
    a.segments[place].row = place;
    a.segments[place].position++;
    if (n_drawn < a.drawn_stride) {
      a.drawn[static_cast<int64_t>(place) * a.drawn_stride + n_drawn] = token;
    }
  }
  // Row i is segment i and logits row i from the second step on, as it was in the first.
  for (int block = row; block < a.n_blocks; block += blockDim.x) {
    Counts& counts = a.counts[block];
    counts.n_rows = kept;
    counts.n_absorbed = kept;
    counts.n_segments = kept;
    counts.n_logits = max(0, min(a.block_rows, kept - block * a.block_rows));
  }
  __threadfence_system();
  __syncthreads();
  if (row == 0) {
    *a.n_drawn = n_drawn + 1;
    state.entries = entries + n;
    state.step = step + 1;
    volatile int32_t* report = a.report + static_cast<int64_t>(step % REPORTS) * REPORT_WORDS;
    report[REPORT_ENTRIES] = entries + n;
    report[REPORT_ROWS] = kept;
    __threadfence_system();
    report[REPORT_STEP] = step + 1;
  }
}

}  // namespace

void advance(const Launch& at, const Advance& parameters) {
  launch(at, advance_kernel, dim3(1), dim3(DECODE_CAPACITY), 0, parameters);
}

}  // namespace moela::cuda
