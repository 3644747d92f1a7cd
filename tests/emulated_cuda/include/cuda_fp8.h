// fp8.
#pragma once

#include <cuda_runtime.h>

using __nv_fp8_storage_t = unsigned char;
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };

// To the nearest E4M3, ties to even, at most 448; NaN stays NaN.
inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float x, __nv_saturation_t,
                                                __nv_fp8_interpretation_t) {
  const unsigned sign = __float_as_uint(x) >> 31 << 7;
  if (isnan(x)) return 0x7f;
  const float magnitude = fabsf(x);
  if (magnitude >= 448) return static_cast<unsigned char>(sign | 0x7e);
  // Steps of 2^-9 below 2^-6, of an eighth of the power of two above.
  const int exponent = magnitude < 0x1p-6f ? -6 : std::ilogb(magnitude);
  const int steps = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 3 - exponent)));
  return static_cast<unsigned char>(sign | ((exponent + 6) * 8 + steps));
}
