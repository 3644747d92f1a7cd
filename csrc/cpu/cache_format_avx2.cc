// Entries of a cache in FP8, INT8 and INT6 to f32, with the bits of decode_entry().
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

// The steps of sixteen latents: four bits in the low halves of `nibbles`, and a word whose bytes,
// shifted by `shifts`, begin with `mask`'s bits above them. Short codes are half as large.
inline __m128i unpack_int6(__m128i nibbles, uint32_t word, __m128i shifts, char mask, bool half) {
  const __m128i low = _mm_and_si128(nibbles, _mm_set1_epi8(15));
  const __m128i shifted = _mm_srlv_epi32(_mm_set1_epi32(static_cast<int>(word)), shifts);
  const __m128i high = _mm_slli_epi16(_mm_and_si128(shifted, _mm_set1_epi8(mask)), 4);
  const __m128i code = _mm_or_si128(low, high);
  return _mm_sub_epi8(half ? _mm_add_epi8(code, code) : code, _mm_set1_epi8(32));
}

inline uint32_t word_at(const uint8_t* at) {
  uint32_t word;
  memcpy(&word, at, sizeof word);
  return word;
}

// The latents of INT6; see int6_place().
inline void decode_int6(int64_t r, int64_t dr, const uint8_t* row, __m256 scale, float* out) {
  const __m128i by_two = _mm_setr_epi32(0, 2, 4, 6), by_one = _mm_setr_epi32(0, 1, 2, 3);
  int64_t i = 0;
  for (; i < int6_short_at(r, dr); i += 16, row += 12) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row));
    const __m128i nibbles = _mm_unpacklo_epi64(bytes, _mm_srli_epi16(bytes, 4));
    store_bytes(unpack_int6(nibbles, word_at(row + 8), by_two, 3, false), scale, out + i);
  }
  for (; i < r; i += 32, row += 20) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row));
    const uint32_t word = word_at(row + 16);
    store_bytes(unpack_int6(bytes, word, by_one, 1, true), scale, out + i);
    store_bytes(unpack_int6(_mm_srli_epi16(bytes, 4), word >> 4, by_one, 1, true), scale,
                out + i + 16);
  }
}

inline __m128i load_bytes(const uint8_t* at) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
}

}  // namespace

void decode_entry_avx2(int32_t dtype, int64_t r, int64_t dr, const uint8_t* row, float scale,
                       float key_scale, float* out) {
  const __m256 scales = _mm256_set1_ps(scale), key_scales = _mm256_set1_ps(key_scale);
  const uint8_t* key = row + cache_key_at(dtype, r, dr);
  if (dtype == MOELA_INT6) {
    decode_int6(r, dr, row, scales, out);
  } else {
    for (int64_t i = 0; i < r; i += 16) {
      const __m128i bytes = load_bytes(row + i);
      if (dtype == MOELA_INT8) {
        store_bytes(bytes, scales, out + i);
      } else {
        store_fp8(bytes, scales, out + i);
        store_fp8(_mm_srli_si128(bytes, 8), scales, out + i + 8);
      }
    }
  }
  for (int64_t i = 0; i < dr; i += 16) store_bytes(load_bytes(key + i), key_scales, out + r + i);
}

}  // namespace moela
