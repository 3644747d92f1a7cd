// The one order in which the squares of a row are summed, by 256 threads, so that every kernel that
// norms a row gives the same bits: thread i adds elements 4 i + 1024 j, + 1, + 2, + 3 in ascending
// order with fused multiply-adds, then its warp in a butterfly, then the eight warps in order.
#pragma once

#include "cuda/launch.h"

namespace moela::cuda {

constexpr int NORM_THREADS = 256;

__device__ __forceinline__ float add_squares(float sum, const float4& x) {
  sum = fmaf(x.x, x.x, sum);
  sum = fmaf(x.y, x.y, sum);
  sum = fmaf(x.z, x.z, sum);
  return fmaf(x.w, x.w, sum);
}

__device__ __forceinline__ float warp_sum(float sum) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
  return sum;
}

// 1 / sqrt(mean + epsilon) from the eight warps' sums.
__device__ __forceinline__ float norm_factor(const float* room, int64_t d, float epsilon) {
  float sum = room[0];
#pragma unroll
  for (int i = 1; i < NORM_THREADS / 32; i++) sum += room[i];
  return 1.0f / sqrtf(sum / static_cast<float>(d) + epsilon);
}

// 1 / sqrt(mean(in^2) + epsilon), on every thread of a block of 256. `room`: 8 floats of shared
// memory.
__device__ __forceinline__ float row_norm_factor(const float* in, int64_t d, float epsilon,
                                                 float* room) {
  const int thread = threadIdx.x;
  float sum = 0;
  const bool aligned = (reinterpret_cast<uintptr_t>(in) & 15) == 0;
  for (int64_t i = 4 * thread; i < d; i += 4 * NORM_THREADS) {
    if (aligned && i + 4 <= d) {
      sum = add_squares(sum, *reinterpret_cast<const float4*>(in + i));
    } else {
      for (int64_t j = i; j < i + 4 && j < d; j++) sum = fmaf(in[j], in[j], sum);
    }
  }
  sum = warp_sum(sum);
  if (thread % 32 == 0) room[thread / 32] = sum;
  __syncthreads();
  return norm_factor(room, d, epsilon);
}

// An element of a norm's weight, F32 or BF16.
__device__ __forceinline__ float norm_weight(const char* weight, int32_t dtype, int64_t i) {
  if (dtype == MOELA_F32) return reinterpret_cast<const float*>(weight)[i];
  return __uint_as_float(static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(weight)[i]) << 16);
}

__device__ __forceinline__ float normed(float x, float factor, float weight) {
  return __fmul_rn(__fmul_rn(x, factor), weight);
}
__device__ __forceinline__ float4 normed4(const float4& x, float factor, const float4& weight) {
  return {normed(x.x, factor, weight.x), normed(x.y, factor, weight.y),
          normed(x.z, factor, weight.z), normed(x.w, factor, weight.w)};
}

}  // namespace moela::cuda
