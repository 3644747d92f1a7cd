// Entries of a cache in FP8, INT8 and INT6 to f32, with the bits of decode_part().
#include <immintrin.h>

#include <cstring>

#include "cpu/cache_format.h"

namespace moela {
namespace {

// Sixteen signed bytes as f32, times the scale.
inline void store_bytes(__m128i bytes, __m256 scale, float* out) {
  const __m256i low = _mm256_cvtepi8_epi32(bytes);
  const __m256i high = _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8));
  _mm256_storeu_ps(out, _mm256_mul_ps(_mm256_cvtepi32_ps(low), scale));
  _mm256_storeu_ps(out + 8, _mm256_mul_ps(_mm256_cvtepi32_ps(high), scale));
}

// Eight E4M3 as f32, times the scale: their bits, moved to where f32 has them, are 2^-120 of the
// value, subnormals too.
inline void store_fp8(__m128i bytes, __m256 scale, float* out) {
  const __m256i bits = _mm256_cvtepu8_epi32(bytes);
  const __m256i sign = _mm256_slli_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x80)), 24);
  const __m256i rest = _mm256_slli_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x7f)), 20);
  const __m256 small = _mm256_castsi256_ps(_mm256_or_si256(sign, rest));
  const __m256 value = _mm256_mul_ps(small, _mm256_set1_ps(0x1p120f));
  _mm256_storeu_ps(out, _mm256_mul_ps(value, scale));
}

// Sixteen INT6 of twelve bytes, as signed bytes.
inline __m128i unpack_int6(const uint8_t* group) {
  int32_t crumbs;
  memcpy(&crumbs, group + 8, sizeof crumbs);
  const __m128i nibbles = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(group));
  const __m128i fifteen = _mm_set1_epi8(15);
  const __m128i low = _mm_unpacklo_epi64(_mm_and_si128(nibbles, fifteen),
                                         _mm_and_si128(_mm_srli_epi16(nibbles, 4), fifteen));
  const __m128i shifted = _mm_srlv_epi32(_mm_set1_epi32(crumbs), _mm_setr_epi32(0, 2, 4, 6));
  const __m128i high = _mm_slli_epi16(_mm_and_si128(shifted, _mm_set1_epi8(3)), 4);
  return _mm_sub_epi8(_mm_or_si128(low, high), _mm_set1_epi8(32));
}

}  // namespace

void decode_part_avx2(int32_t dtype, const uint8_t* row, int64_t begin, int64_t end, float scale,
                      float* out) {
  const __m256 scales = _mm256_set1_ps(scale);
  for (int64_t i = begin; i < end; i += 16) {
    if (dtype == MOELA_INT6) {
      store_bytes(unpack_int6(row + i / 16 * 12), scales, out + i);
      continue;
    }
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i));
    if (dtype == MOELA_INT8) {
      store_bytes(bytes, scales, out + i);
    } else {
      store_fp8(bytes, scales, out + i);
      store_fp8(_mm_srli_si128(bytes, 8), scales, out + i + 8);
    }
  }
}

}  // namespace moela
