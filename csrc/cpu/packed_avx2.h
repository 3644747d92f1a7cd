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

// Rows of the weight that are taken together, and groups of one that are summed before the next
// row's: memory is read in runs of RUN groups, which lie in one piece where rows are no longer.
constexpr int64_t ROWS = 8;
constexpr int64_t RUN = 16;
// Bytes that are asked for ahead of the sums.
constexpr int64_t AHEAD = 1024;

// Lane j is the sum of the lanes of sums[j].
inline __m256i lane_sums8(const __m256i (&sums)[ROWS]) {
  const __m256i low = add_pairs(add_pairs(sums[0], sums[1]), add_pairs(sums[2], sums[3]));
  const __m256i high = add_pairs(add_pairs(sums[4], sums[5]), add_pairs(sums[6], sums[7]));
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

// Of a run of a row: its scales' words, and INT4's factors, each as the sums take it.
struct RunScales {
  alignas(32) uint32_t words[RUN];
  alignas(32) uint32_t factors[4][RUN];
};

template <class Word>
void load_words(const char* from, int64_t count, uint32_t* words) {
  int64_t g = 0;
  for (; g + 8 <= count; g += 8) {
    const __m256i eight =
        sizeof(Word) == 2 ? _mm256_cvtepu16_epi32(load128(from + g * 2)) : load256(from + g * 4);
    _mm256_store_si256(reinterpret_cast<__m256i*>(words + g), eight);
  }
  for (; g < count; g++) words[g] = load_at<Word>(from, g);
}

// The factors of a run, once more in the upper halves where `twice`.
inline void int4_factors(bool twice, RunScales& run) {
  const __m256i mask = _mm256_set1_epi8(15);
  // Of a word, byte 2 has factors 0 and 1, byte 3 has 2 and 3; 0x80 gives 0.
  const auto order = [&](int byte) {
    const int32_t one = twice ? 0x80008000 | byte | byte << 16 : 0x80808000 | byte;
    const __m128i words = _mm_setr_epi32(0, 0x00040004, 0x00080008, 0x000c000c);
    return _mm256_broadcastsi128_si256(_mm_or_si128(_mm_set1_epi32(one), words));
  };
  const __m256i second = order(2), third = order(3);
  for (int64_t g = 0; g < RUN; g += 8) {
    const __m256i words = load256(run.words + g);
    const __m256i low = _mm256_and_si256(words, mask);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(words, 4), mask);
    const auto store = [&](int v, __m256i factors) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(run.factors[v] + g), factors);
    };
    store(0, _mm256_shuffle_epi8(low, second));
    store(1, _mm256_shuffle_epi8(high, second));
    store(2, _mm256_shuffle_epi8(low, third));
    store(3, _mm256_shuffle_epi8(high, third));
  }
}

// Lane i of rows[j] becomes lane j of rows[i].
inline void transpose8(__m256i (&rows)[8]) {
  __m256i two[8], four[8];
  for (int i = 0; i < 8; i += 2) {
    two[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
    two[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    four[i] = _mm256_unpacklo_epi64(two[i], two[i + 2]);
    four[i + 1] = _mm256_unpackhi_epi64(two[i], two[i + 2]);
    four[i + 2] = _mm256_unpacklo_epi64(two[i + 1], two[i + 3]);
    four[i + 3] = _mm256_unpackhi_epi64(two[i + 1], two[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    rows[i] = _mm256_permute2x128_si256(four[i], four[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2x128_si256(four[i], four[i + 4], 0x31);
  }
}

// Eight rows of the weight, `rows` of data and `scales`, with one packed row. `ahead`: how far to
// prefetch.
template <class W>
__m256 row_of_eight(const IntegerRow& layout, int64_t row_bytes, const char* const* rows,
                    const char* const* scales, const char* packed, int64_t ahead) {
  const int8_t* q = reinterpret_cast<const int8_t*>(packed);
  const float* x_scales = layout.scales(packed);
  const int16_t* eights = layout.eights(packed);
  RunScales runs[ROWS];
  alignas(32) int32_t sums[RUN][ROWS][8];
  __m256 y = _mm256_setzero_ps();
  for (int64_t begin = 0; begin < layout.groups; begin += RUN) {
    const int64_t count = layout.groups - begin < RUN ? layout.groups - begin : RUN;
    const int64_t offset = begin * W::GROUP_BYTES;
    const int64_t whole = (row_bytes - offset) / W::GROUP_BYTES;
    for (int64_t j = 0; j < ROWS; j++) {
      load_words<typename W::Word>(scales[j] + begin * sizeof(typename W::Word), count,
                                   runs[j].words);
      W::prepare(runs[j]);
      const auto sum = [&](int64_t g, const char* from) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(sums[g][j]),
                           W::sum(from, q + (begin + g) * GROUP, runs[j], g));
      };
      const char* from = rows[j] + offset;
      for (int64_t g = 0; g < count && g < whole; g++, from += W::GROUP_BYTES) {
        for (int64_t line = 0; line < W::GROUP_BYTES; line += 64) {
          _mm_prefetch(from + ahead + line, _MM_HINT_T0);
        }
        sum(g, from);
      }
      if (whole < count) {
        // What is beyond the last columns is 0 in q.
        char tail[W::GROUP_BYTES] = {};
        memcpy(tail, from, row_bytes - offset - whole * W::GROUP_BYTES);
        sum(whole, tail);
      }
    }
    for (int64_t first = 0; first < count; first += 8) {
      __m256i words[8];
      for (int64_t j = 0; j < ROWS; j++) words[j] = load256(runs[j].words + first);
      transpose8(words);
      for (int64_t g = first; g < count && g < first + 8; g++) {
        __m256i lanes[ROWS];
        for (int64_t j = 0; j < ROWS; j++) lanes[j] = load256(sums[g][j]);
        const __m256i word = words[g - first];
        const __m256i total =
            _mm256_sub_epi32(lane_sums8(lanes), W::excess(word, eights + (begin + g) * 4));
        const __m256 scale = _mm256_mul_ps(_mm256_set1_ps(x_scales[begin + g]),
                                           _mm256_castsi256_ps(_mm256_slli_epi32(word, 16)));
        y = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), scale, y);
      }
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
    // The first lines together, so that none waits for another.
    for (int64_t at = 0; j == 0 && at < AHEAD; at += 64) _mm_prefetch(rows[0] + at, _MM_HINT_T0);
    for (int64_t i = 0; i < m; i++) {
      __m256 y = row_of_eight<W>(layout, row_bytes, rows, scales, packed + i * layout.stride(),
                                 i == 0 ? AHEAD : 0);
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
