// The one order in which the squares of a row are summed, by 256 threads, so that every kernel that
// norms a row gives the same bits: thread i adds elements 4 i + 1024 j, + 1, + 2, + 3 in ascending
// order with fused multiply-adds, then its warp in a butterfly, then the eight warps in order.
#pragma once

#include "cuda/launch.h"

namespace moela::cuda {

constexpr int NORM_THREADS = 256;

// 1 / sqrt(mean(in^2) + epsilon), on every thread of a block of at least 256. `room`: 8 floats of
// shared memory.
__device__ __forceinline__ float row_norm_factor(const float* in, int64_t d, float epsilon,
                                                 float* room) {
  const int thread = threadIdx.x;
  if (thread < NORM_THREADS) {
    float sum = 0;
    const bool aligned = (reinterpret_cast<uintptr_t>(in) & 15) == 0;
    for (int64_t i = 4 * thread; i < d; i += 4 * NORM_THREADS) {
      if (aligned && i + 4 <= d) {
        const float4 x = *reinterpret_cast<const float4*>(in + i);
        sum = fmaf(x.x, x.x, sum);
        sum = fmaf(x.y, x.y, sum);
        sum = fmaf(x.z, x.z, sum);
        sum = fmaf(x.w, x.w, sum);
      } else {
        for (int64_t j = i; j < i + 4 && j < d; j++) sum = fmaf(in[j], in[j], sum);
      }
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
    if (thread % 32 == 0) room[thread / 32] = sum;
  }
  __syncthreads();
  float sum = room[0];
#pragma unroll
  for (int i = 1; i < NORM_THREADS / 32; i++) sum += room[i];
  return 1.0f / sqrtf(sum / static_cast<float>(d) + epsilon);
}

// An element of a normed row; its weight in F32 or BF16.
__device__ __forceinline__ float norm_weight(const char* weight, int32_t dtype, int64_t i) {
  if (dtype == MOELA_F32) return reinterpret_cast<const float*>(weight)[i];
  return __uint_as_float(static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(weight)[i]) << 16);
}

__device__ __forceinline__ float normed(float x, float factor, float weight) {
  return __fmul_rn(__fmul_rn(x, factor), weight);
}

}  // namespace moela::cuda
