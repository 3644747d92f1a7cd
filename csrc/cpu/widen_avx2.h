// Rows of weights as f32, for products in f32 that use them many times. Internal linkage: see
// avx2.h.
#pragma once

#include "avx2.h"
#include "formats.h"

namespace moela {
namespace {

// Eight elements as f32, but for a power of two that the scale makes up for.
struct RawFp8 {
  // As f16 with the same bits of exponent and mantissa, which is 2^-8 times the number: subnormals
  // come out right.
  static constexpr float GAIN = 256;
  static __m256 all(const char* at) {
    const __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
    return _mm256_cvtph_ps(
        _mm_and_si128(_mm_slli_epi16(wide, 7), _mm_set1_epi16(static_cast<int16_t>(0xbf80))));
  }
  static float scale(const WeightRows& b, int64_t row, int64_t group) {
    return load_at<float>(b.scales, row / GROUP * groups_of(b.cols) + group) * GAIN;
  }
};

struct RawInt8 {
  static __m256 all(const char* at) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
  }
  static float scale(const WeightRows& b, int64_t row, int64_t group) {
    return bf16_to_f32(load_at<uint16_t>(b.scales, row * groups_of(b.cols) + group));
  }
};

template <class Raw>
__m256 raw_part(const char* at, int64_t count) {
  char bytes[8] = {};
  memcpy(bytes, at, count);
  return Raw::all(bytes);
}

inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// All of these write `count` elements from column `begin` on in vectors of eight, `step` floats
// apart, the last filled with zeros.

// Row `row` of FP8 or INT8; begin is a multiple of GROUP.
template <class Raw>
void widen_scaled(const WeightRows& b, int64_t row, int64_t begin, int64_t count, float* to,
                  int64_t step) {
  const char* from = b.data + row * b.cols + begin;
  for (int64_t group = 0; group < count; group += GROUP) {
    const __m256 scale = _mm256_set1_ps(Raw::scale(b, row, (begin + group) / GROUP));
    const int64_t end = at_most(group + GROUP, count);
    int64_t l = group;
    for (; l + 8 <= end; l += 8) {
      _mm256_storeu_ps(to + l / 8 * step, _mm256_mul_ps(Raw::all(from + l), scale));
    }
    if (l < end) {
      _mm256_storeu_ps(to + l / 8 * step, _mm256_mul_ps(raw_part<Raw>(from + l, end - l), scale));
    }
  }
}

// A row of F32 or BF16 at `row`.
template <class Type>
void widen_plain(const char* row, int64_t begin, int64_t count, float* to, int64_t step) {
  const char* from = row + begin * Type::BYTES;
  int64_t l = 0;
  for (; l + 8 <= count; l += 8) {
    _mm256_storeu_ps(to + l / 8 * step, Type::all(from + l * Type::BYTES));
  }
  if (l < count) {
    _mm256_storeu_ps(to + l / 8 * step, Type::part(from + l * Type::BYTES, count - l));
  }
}

}  // namespace
}  // namespace moela
