// What the small operations share: how many rows a grid is sized for, elements of weights.
#pragma once

#include "cuda/launch.h"

namespace moela::cuda {

// Rows of a moela_rows at most. LOGITS programs give the bucket in logits rows.
inline int32_t most_rows(const Launch& at, int32_t rows) {
  return rows == MOELA_ROWS_ABSORBED ? at.absorbed : at.bucket;
}

#ifdef __CUDACC__
__device__ __forceinline__ float bf16_value(uint16_t half) {
  return __uint_as_float(static_cast<uint32_t>(half) << 16);
}

// To nearest, ties to even; NaN stays NaN.
__device__ __forceinline__ uint16_t bf16_bits(float value) {
  const uint32_t bits = __float_as_uint(value);
  if (isnan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// (even, odd) rotated by an angle: each product and sum rounded, as on the CPU.
__device__ __forceinline__ float2 rotate_pair(float even, float odd, float cosine, float sine) {
  return {__fsub_rn(__fmul_rn(even, cosine), __fmul_rn(odd, sine)),
          __fadd_rn(__fmul_rn(even, sine), __fmul_rn(odd, cosine))};
}
#endif

}  // namespace moela::cuda
