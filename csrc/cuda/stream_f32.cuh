// The order in which F32 products are summed, by 256 threads: thread i adds elements 4 i + 1024 j,
// + 1, + 2, + 3 of K in ascending order with fused multiply-adds, then its warp in a butterfly,
// then the eight warps in order. It is the order of row_norm.cuh.
#pragma once

#include "cuda/row_norm.cuh"

namespace moela::cuda {

__device__ __forceinline__ float f32_step(float sum, const float4& w, const float4& x) {
  sum = fmaf(w.x, x.x, sum);
  sum = fmaf(w.y, x.y, sum);
  sum = fmaf(w.z, x.z, sum);
  return fmaf(w.w, x.w, sum);
}

// Adds up the eight warps' sums, `stride` floats apart.
__device__ __forceinline__ float f32_warps(const float* sums, int stride) {
  float sum = sums[0];
#pragma unroll
  for (int i = 1; i < NORM_THREADS / 32; i++) sum = __fadd_rn(sum, sums[i * stride]);
  return sum;
}

}  // namespace moela::cuda
