// The formats of weights (moela_weight_desc): their sizes in bytes, and conversions of single
// numbers. All with internal linkage, for the reason that avx2.h gives. CUDA shares what is
// MOELA_SHARED, so that both write the same bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "moela.h"

#if defined(__CUDACC__)
#define MOELA_SHARED static __host__ __device__ inline
#else
#define MOELA_SHARED static inline
#endif

namespace moela {

// Columns, and of FP8 also rows, that share a scale.
constexpr int64_t GROUP = 128;
// Columns of INT4 that share a factor.
constexpr int64_t SUBGROUP = 32;

static inline int64_t groups_of(int64_t cols) { return (cols + GROUP - 1) / GROUP; }

static inline bool weight_has_scales(int32_t dtype) {
  return dtype == MOELA_FP8 || dtype == MOELA_INT8 || dtype == MOELA_INT4;
}

// Bytes of a row of a weight, without scales.
static inline int64_t weight_row_bytes(int32_t dtype, int64_t cols) {
  switch (dtype) {
    case MOELA_FP8:
    case MOELA_INT8:
      return cols;
    case MOELA_INT4:
      return (cols + 63) / 64 * 32;
    case MOELA_BF16:
    case MOELA_F16:
      return cols * 2;
    default:
      return cols * 4;
  }
}

// Bytes of a row of scales; of FP8 a row of scales is of 128 rows.
static inline int64_t scale_row_bytes(int32_t dtype, int64_t cols) {
  return groups_of(cols) * (dtype == MOELA_INT8 ? 2 : 4);
}

static inline int64_t scale_rows(int32_t dtype, int64_t rows) {
  return dtype == MOELA_FP8 ? groups_of(rows) : rows;
}

// Bytes of the scales of a matrix; 0 for types without.
static inline int64_t scale_bytes(int32_t dtype, int64_t rows, int64_t cols) {
  return weight_has_scales(dtype) ? scale_rows(dtype, rows) * scale_row_bytes(dtype, cols) : 0;
}

MOELA_SHARED float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

MOELA_SHARED uint32_t bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Element `i` of an array that may be unaligned.
template <class T>
static inline T load_at(const void* from, int64_t i) {
  T value;
  memcpy(&value, static_cast<const char*>(from) + i * static_cast<int64_t>(sizeof(T)),
         sizeof value);
  return value;
}

static inline float bf16_to_f32(uint16_t half) {
  return float_of_bits(static_cast<uint32_t>(half) << 16);
}

static inline uint16_t f32_to_bf16(float value) {
  const uint32_t bits = bits_of_float(value);
  // Rounding could carry a NaN into infinity: it stays NaN by its quiet bit.
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  // To nearest, ties to even: half of the last place, less one unless that place is odd.
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float f16_to_f32(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 31;
  const uint32_t mantissa = half & 0x3ff;
  if (exponent == 31) return float_of_bits(sign | 0x7f800000 | (mantissa << 13));
  // Subnormals: mantissa * 2^-24; the others have the hidden bit.
  const float magnitude =
      exponent == 0 ? mantissa * 0x1p-24f
                    : (1024 + mantissa) * 0x1p-25f * static_cast<float>(uint32_t{1} << exponent);
  return sign ? -magnitude : magnitude;
}

// E4M3: no infinities, largest 448. 0x7f and 0xff, NaN by the format, read as +-480 here and in
// every kernel: no checkpoint has them, and telling them apart would cost each product.
MOELA_SHARED float fp8_to_f32(uint8_t bits) {
  const int exponent = (bits >> 3) & 15;
  const int mantissa = bits & 7;
  const float magnitude = exponent == 0
                              ? mantissa * 0x1p-9f
                              : (8 + mantissa) * 0x1p-10f * static_cast<float>(1 << exponent);
  return bits & 0x80 ? -magnitude : magnitude;
}

// To nearest, ties to even, at most 448.
MOELA_SHARED uint8_t f32_to_fp8(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint8_t sign = static_cast<uint8_t>(bits >> 24 & 0x80);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude >= 0x43e80000) return sign | 0x7e;  // 464 and more, NaN too
  if (magnitude < 0x3c800000) {
    // Below 2^-6: a multiple of 2^-9. The sum's last place is that.
    const float sum = float_of_bits(magnitude) + 0x1.8p14f;
    return static_cast<uint8_t>(sign | (bits_of_float(sum) & 0xf));
  }
  // The exponent's bias goes from 127 to 7, the mantissa from 23 bits to 3.
  const uint32_t rounded = magnitude + 0x7ffff + (magnitude >> 20 & 1) - (uint32_t{120} << 23);
  return static_cast<uint8_t>(sign | rounded >> 20);
}

}  // namespace moela
