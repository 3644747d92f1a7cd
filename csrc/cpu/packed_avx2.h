// What the integer products in AVX2 and beyond share: quantizing rows, and products of few rows.
// One row of the input at a time, eight rows of the weight beside one another, each read once from
// memory and then from the cache. Internal linkage: see avx2.h.
#pragma once

#include "avx2.h"
#include "integer_rows.h"

namespace moela {
namespace {

inline __m256i load256(const void* at) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(at));
}
inline __m128i load128(const void* at) { return _mm_loadu_si128(static_cast<const __m128i*>(at)); }

// 128 elements; returns their quantized values in q (int8).
inline GroupScale quantize_group(const float* x, int8_t* q) {
  const __m256i absolute = _mm256_set1_epi32(0x7fffffff);
  __m256i largest = _mm256_setzero_si256();
  for (int i = 0; i < GROUP; i += 8) {
    largest = _mm256_max_epi32(largest, _mm256_and_si256(load256(x + i), absolute));
  }
  __m128i four =
      _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
  const GroupScale scale = group_scale(static_cast<uint32_t>(_mm_cvtsi128_si32(four)));
  if (scale.zero) {
    memset(q, 0, GROUP);
    return scale;
  }
  const __m256 factor = _mm256_set1_ps(scale.factor);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int i = 0; i < GROUP; i += 32) {
    __m256i values[4];
    for (int j = 0; j < 4; j++) {
      values[j] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + j * 8), factor));
    }
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(values[0], values[1]),
                                             _mm256_packs_epi32(values[2], values[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + i),
                        _mm256_permutevar8x32_epi32(bytes, order));
  }
  return scale;
}

// 8 times the sum of 32 values.
inline int16_t eight_sums(const int8_t* q) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(8), load256(q));
  const __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
  return static_cast<int16_t>(_mm_cvtsi128_si32(sum));
}

// Rows of the weight that are taken together, and groups whose scales are read ahead.
constexpr int64_t ROWS = 8;
constexpr int64_t SCALES_AHEAD = 16;

// Lane j is the sum of the lanes of sums[j].
inline __m256i lane_sums8(const __m256i (&sums)[ROWS]) {
  const __m256i low =
      _mm256_hadd_epi32(_mm256_hadd_epi32(sums[0], sums[1]), _mm256_hadd_epi32(sums[2], sums[3]));
  const __m256i high =
      _mm256_hadd_epi32(_mm256_hadd_epi32(sums[4], sums[5]), _mm256_hadd_epi32(sums[6], sums[7]));
  return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20),
                          _mm256_permute2x128_si256(low, high, 0x31));
}

// What sums of nibbles q + 8 of INT4 have too much for eight rows: 8 * factor * (sum of x) for each
// 32 columns. words: scales and factors of the rows; eights: of the group.
inline __m256i int4_excess(__m256i words, const int16_t* eights) {
  const __m256i low = _mm256_set1_epi32(0xf), high = _mm256_set1_epi32(0xf0000);
  const __m256i factors01 = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi32(words, 16), low),
                                            _mm256_and_si256(_mm256_srli_epi32(words, 4), high));
  const __m256i factors23 = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi32(words, 24), low),
                                            _mm256_and_si256(_mm256_srli_epi32(words, 12), high));
  return _mm256_add_epi32(
      _mm256_madd_epi16(factors01, _mm256_set1_epi32(load_at<int32_t>(eights, 0))),
      _mm256_madd_epi16(factors23, _mm256_set1_epi32(load_at<int32_t>(eights, 1))));
}

// The quantized group `g` of a row x [k].
inline GroupScale quantize_row_group(const float* x, int64_t k, int64_t g, int8_t* q) {
  const float* from = x + g * GROUP;
  if (k - g * GROUP >= GROUP) return quantize_group(from, q);
  float tail[GROUP] = {};
  memcpy(tail, from, (k - g * GROUP) * sizeof(float));
  return quantize_group(tail, q);
}

// Packs m rows, q as int16 where `wide`: see IntegerRow.
inline void pack_rows(int64_t m, int64_t k, bool wide, const float* const* rows, char* out) {
  const IntegerRow layout(k, wide);
  for (int64_t i = 0; i < m; i++) {
    char* row = out + i * layout.stride();
    for (int64_t g = 0; g < layout.groups; g++) {
      int8_t room[GROUP];
      int8_t* q = wide ? room : reinterpret_cast<int8_t*>(row) + g * GROUP;
      layout.scales(row)[g] = quantize_row_group(rows[i], k, g, q).scale;
      for (int v = 0; v < 4; v++) layout.eights(row)[g * 4 + v] = eight_sums(q + v * 32);
      for (int v = 0; wide && v < GROUP; v += 16) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + (g * GROUP + v) * 2),
                            _mm256_cvtepi8_epi16(load128(q + v)));
      }
    }
  }
}

// Eight rows of the weight, `rows` of data and `scales`, with one packed row.
template <class W>
__m256 row_of_eight(const IntegerRow& layout, int64_t row_bytes, const char* const* rows,
                    const char* const* scales, const char* packed, bool prefetch) {
  const int8_t* q = reinterpret_cast<const int8_t*>(packed);
  const float* x_scales = layout.scales(packed);
  const int16_t* eights = layout.eights(packed);
  __m256 y = _mm256_setzero_ps();
  for (int64_t ahead = 0; ahead < layout.groups; ahead += SCALES_AHEAD) {
    const int64_t end = ahead + SCALES_AHEAD < layout.groups ? ahead + SCALES_AHEAD : layout.groups;
    alignas(32) uint32_t words[SCALES_AHEAD][ROWS];
    for (int64_t j = 0; j < ROWS; j++) {
      for (int64_t g = ahead; g < end; g++) {
        words[g - ahead][j] = load_at<typename W::Word>(scales[j], g);
      }
    }
    for (int64_t g = ahead; g < end; g++) {
      const __m256i word = load256(words[g - ahead]);
      const int64_t offset = g * W::GROUP_BYTES;
      __m256i sums;
      if (offset + W::GROUP_BYTES <= row_bytes) {
        if (prefetch) {
          // The next eight rows follow these in memory.
          for (int64_t j = 0; j < ROWS; j++) {
            const char* next = rows[j] + ROWS * row_bytes + offset;
            _mm_prefetch(next, _MM_HINT_T0);
            if (W::GROUP_BYTES > 64) _mm_prefetch(next + 64, _MM_HINT_T0);
          }
        }
        sums = W::sums(rows, offset, q + g * GROUP, eights + g * 4, word);
      } else {
        // What is beyond the last columns is 0 in q.
        char tails[ROWS][W::GROUP_BYTES] = {};
        const char* pointers[ROWS];
        for (int64_t j = 0; j < ROWS; j++) {
          memcpy(tails[j], rows[j] + offset, row_bytes - offset);
          pointers[j] = tails[j];
        }
        sums = W::sums(pointers, 0, q + g * GROUP, eights + g * 4, word);
      }
      const __m256 scale =
          _mm256_mul_ps(_mm256_set1_ps(x_scales[g]), _mm256_castsi256_ps(W::scale_bits(word)));
      y = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), scale, y);
    }
  }
  return y;
}

template <class W>
void few_rows(const WeightRows& b, int64_t m, int64_t n, const char* packed, float* c, int64_t ldc,
              bool add) {
  const IntegerRow layout(b.cols, false);
  const int64_t row_bytes = weight_row_bytes(W::DTYPE, b.cols);
  const int64_t scale_bytes = scale_row_bytes(W::DTYPE, b.cols);
  for (int64_t j = 0; j < n; j += ROWS) {
    const int64_t count = n - j < ROWS ? n - j : ROWS;
    const char* rows[ROWS];
    const char* scales[ROWS];
    for (int64_t r = 0; r < ROWS; r++) {
      // The last rows are taken several times where there are fewer than eight.
      const int64_t row = b.first + j + (r < count ? r : count - 1);
      rows[r] = b.data + row * row_bytes;
      scales[r] = b.scales + row * scale_bytes;
    }
    for (int64_t i = 0; i < m; i++) {
      __m256 y = row_of_eight<W>(layout, row_bytes, rows, scales, packed + i * layout.stride(),
                                 i == 0 && count == ROWS);
      float* to = c + i * ldc + j;
      if (count == ROWS) {
        if (add) y = _mm256_add_ps(_mm256_loadu_ps(to), y);
        _mm256_storeu_ps(to, y);
      } else {
        const __m256i lanes = first_lanes(count);
        if (add) y = _mm256_add_ps(_mm256_maskload_ps(to, lanes), y);
        _mm256_maskstore_ps(to, lanes, y);
      }
    }
  }
}

}  // namespace
}  // namespace moela
