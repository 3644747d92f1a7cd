// The order in which F32 products are summed: lane l of a warp takes elements 4 l, + 1, + 2, + 3 of
// each 128 of K with fused multiply-adds in ascending order, then the lanes add in a butterfly.
#pragma once

#include "cuda/launch.h"

namespace moela::cuda {

__device__ __forceinline__ float f32_step(float sum, const float4& w, const float4& x) {
  sum = fmaf(w.x, x.x, sum);
  sum = fmaf(w.y, x.y, sum);
  sum = fmaf(w.z, x.z, sum);
  return fmaf(w.w, x.w, sum);
}

__device__ __forceinline__ float f32_sum(float sum) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
  return sum;
}

}  // namespace moela::cuda
