// Slices of a row of logits: how they are read, and how their sums of exponentials are formed and
// merged. Everything about a slice depends on the row alone, so that a row's bits do.
#pragma once

#include "cuda/launch.h"
#include "cuda/scratch.h"

namespace moela::cuda {

constexpr int SLICE_THREADS = 256;
constexpr int SLICE_EACH = static_cast<int>(VOCAB_SLICE) / SLICE_THREADS;
constexpr float NEVER = -__builtin_huge_valf();

// sum of exp(x - max) over a slice.
struct SliceSum {
  float max;
  float sum;
};

// The token of this thread's element j of a slice.
__device__ __forceinline__ int slice_token(int slice, int j) {
  return slice * static_cast<int>(VOCAB_SLICE) + j / 4 * SLICE_THREADS * 4 +
         static_cast<int>(threadIdx.x) * 4 + j % 4;
}

// This thread's elements of a slice; -inf beyond the row.
__device__ __forceinline__ void load_slice(const float* row, int slice, int vocab,
                                           float (&x)[SLICE_EACH]) {
  const bool vectors = vocab % 4 == 0;
#pragma unroll
  for (int j = 0; j < SLICE_EACH; j += 4) {
    const int token = slice_token(slice, j);
    if (vectors && token < vocab) {
      const float4 v = *reinterpret_cast<const float4*>(row + token);
      x[j] = v.x;
      x[j + 1] = v.y;
      x[j + 2] = v.z;
      x[j + 3] = v.w;
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) x[j + i] = token + i < vocab ? row[token + i] : NEVER;
    }
  }
}

// Of the whole slice, on thread 0; all 256 threads call it. `room`: 16 floats of shared memory.
__device__ __forceinline__ SliceSum slice_sum(const float (&x)[SLICE_EACH], float* room) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float largest = NEVER;
#pragma unroll
  for (int j = 0; j < SLICE_EACH; j++) largest = fmaxf(largest, x[j]);
#pragma unroll
  for (int s = 16; s > 0; s /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, s));
  if (lane == 0) room[warp] = largest;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < SLICE_THREADS / 32; i++) largest = fmaxf(largest, room[i]);
  const float shift = isinf(largest) ? 0 : largest;
  float sum = 0;
#pragma unroll
  for (int j = 0; j < SLICE_EACH; j++) sum += expf(x[j] - shift);
#pragma unroll
  for (int s = 16; s > 0; s /= 2) sum += __shfl_xor_sync(~0u, sum, s);
  if (lane == 0) room[8 + warp] = sum;
  __syncthreads();
  sum = room[8];
#pragma unroll
  for (int i = 1; i < SLICE_THREADS / 32; i++) sum += room[8 + i];
  return {largest, sum};
}

// ln sum exp of a row from its slices, `stride` bytes apart, by a whole warp; -inf or inf when the
// largest is.
__device__ __forceinline__ double merge_slices(const void* slices, int n, int stride) {
  const int lane = threadIdx.x % 32;
  const auto at = [&](int i) {
    return *reinterpret_cast<const SliceSum*>(static_cast<const char*>(slices) + i * stride);
  };
  float largest = NEVER;
  for (int i = lane; i < n; i += 32) largest = fmaxf(largest, at(i).max);
#pragma unroll
  for (int s = 16; s > 0; s /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, s));
  if (isinf(largest)) return largest;
  double sum = 0;
  for (int i = lane; i < n; i += 32) {
    const SliceSum slice = at(i);
    // A slice of nothing has a sum of 0, or of NaN when there is one.
    sum += slice.sum * (isinf(slice.max) ? 1.0 : exp(static_cast<double>(slice.max) - largest));
  }
#pragma unroll
  for (int s = 16; s > 0; s /= 2) sum += __shfl_xor_sync(~0u, sum, s);
  return largest + log(sum);
}

}  // namespace moela::cuda
