// 16 rows of an INT8 or INT4 weight laid out for many rows of the input, a group of columns at a
// time: lanes are rows of the weight, so that no sum crosses lanes. INT8 becomes int16; INT4 stays
// bytes, whose products fit int16 by sixteens: half as many multiplications.
#pragma once

#include "packed_avx2.h"

namespace moela {
namespace {

constexpr int64_t STRIP = 16;  // rows of the weight

// Where a group of 16 rows of the weight comes from.
struct StripSource {
  int64_t row_bytes;
  const char* rows[STRIP];
  const char* scales[STRIP];
};

// The words of scales of a group, and in `to` their scales; in `values` where the group's bytes
// are: in place where all are there, else in `room` with zeros behind them.
template <class Word, int64_t BYTES>
void open_group(const StripSource& from, int64_t g, char (*room)[BYTES], const char** values,
                uint32_t* words, float* to) {
  const int64_t offset = g * BYTES;
  const bool whole = offset + BYTES <= from.row_bytes;
  for (int64_t j = 0; j < STRIP; j++) {
    words[j] = load_at<Word>(from.scales[j], g);
    values[j] = from.rows[j] + offset;
    // The same columns of the next rows, which come after these are done.
    _mm_prefetch(values[j] + STRIP * from.row_bytes, _MM_HINT_T1);
    if (BYTES > 64) _mm_prefetch(values[j] + STRIP * from.row_bytes + 64, _MM_HINT_T1);
    if (whole) continue;
    memset(room[j], 0, BYTES);
    memcpy(room[j], values[j], from.row_bytes - offset);
    values[j] = room[j];
  }
  for (int64_t j = 0; j < STRIP; j += 8) {
    const __m256i bits = _mm256_slli_epi32(load256(words + j), 16);
    _mm256_store_ps(to + j, _mm256_castsi256_ps(bits));
  }
}

// Adds sums [M][16] of a group, scaled, to y [M][16].
template <int M>
void add_group(const __m256i (&sums)[M][2], const float* w_scales, const IntegerRow& layout,
               const char* packed, int64_t g, float* y) {
  for (int i = 0; i < M; i++) {
    const __m256 scale = _mm256_set1_ps(layout.scales(packed + i * layout.stride())[g]);
    for (int h = 0; h < 2; h++) {
      float* to = y + i * STRIP + h * 8;
      const __m256 both = _mm256_mul_ps(scale, _mm256_load_ps(w_scales + h * 8));
      _mm256_storeu_ps(to,
                       _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[i][h]), both, _mm256_loadu_ps(to)));
    }
  }
}

// INT8: values [64 pairs of columns][16 rows][2] as int16.
struct PairStrip {
  static constexpr bool WIDE = true;  // how rows are packed
  alignas(32) int16_t values[GROUP / 2][STRIP][2];
  alignas(32) float scales[STRIP];

  void unpack(const StripSource& from, int64_t g);
  template <int M>
  void add(const IntegerRow& layout, const char* packed, int64_t g, float* y) const;
};

// Eight rows of 16 int8 each, from rows[j]: pairs of columns of the eight rows, as int16.
inline void transpose_pairs(const char* const* rows, int64_t offset, int16_t* to) {
  __m128i in[8], two[8], four[8];
  for (int j = 0; j < 8; j++) in[j] = load128(rows[j] + offset);
  for (int j = 0; j < 4; j++) {
    two[j] = _mm_unpacklo_epi16(in[2 * j], in[2 * j + 1]);
    two[j + 4] = _mm_unpackhi_epi16(in[2 * j], in[2 * j + 1]);
  }
  // two[j]: rows 2j and 2j + 1, pairs 0 to 3; two[j + 4]: pairs 4 to 7.
  for (int half = 0; half < 2; half++) {
    const __m128i* from = two + half * 4;
    four[half * 4] = _mm_unpacklo_epi32(from[0], from[1]);
    four[half * 4 + 1] = _mm_unpackhi_epi32(from[0], from[1]);
    four[half * 4 + 2] = _mm_unpacklo_epi32(from[2], from[3]);
    four[half * 4 + 3] = _mm_unpackhi_epi32(from[2], from[3]);
  }
  for (int half = 0; half < 2; half++) {
    const __m128i* from = four + half * 4;
    const __m128i pairs[4] = {
        _mm_unpacklo_epi64(from[0], from[2]), _mm_unpackhi_epi64(from[0], from[2]),
        _mm_unpacklo_epi64(from[1], from[3]), _mm_unpackhi_epi64(from[1], from[3])};
    for (int p = 0; p < 4; p++) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(to + (half * 4 + p) * STRIP * 2),
                         _mm256_cvtepi8_epi16(pairs[p]));
    }
  }
}

inline void PairStrip::unpack(const StripSource& from, int64_t g) {
  char room[STRIP][GROUP];
  const char* rows[STRIP];
  uint32_t words[STRIP];
  open_group<uint16_t>(from, g, room, rows, words, scales);
  for (int64_t at = 0; at < GROUP; at += 16) {
    transpose_pairs(rows, at, values[at / 2][0]);
    transpose_pairs(rows + 8, at, values[at / 2][8]);
  }
}

template <int M>
void PairStrip::add(const IntegerRow& layout, const char* packed, int64_t g, float* y) const {
  const int64_t stride = layout.stride();
  const char* x = packed + g * GROUP * 2;
  __m256i sums[M][2];
  for (int i = 0; i < M; i++) sums[i][0] = sums[i][1] = _mm256_setzero_si256();
  constexpr int64_t UNROLLED = 4;
  for (int64_t begin = 0; begin < GROUP / 2; begin += UNROLLED) {
#pragma GCC unroll 4
    for (int64_t pair = begin; pair < begin + UNROLLED; pair++) {
      const __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(values[pair][0]));
      const __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(values[pair][8]));
      for (int i = 0; i < M; i++) {
        const __m256i both = _mm256_set1_epi32(load_at<int32_t>(x + i * stride, pair));
        sums[i][0] = _mm256_add_epi32(sums[i][0], _mm256_madd_epi16(low, both));
        sums[i][1] = _mm256_add_epi32(sums[i][1], _mm256_madd_epi16(high, both));
        hold(sums[i][0]);
        hold(sums[i][1]);
      }
    }
  }
  add_group(sums, scales, layout, packed, g, y);
}

// INT4: q + 8 as bytes, [32 fours of columns][16 rows][4]; factors twice, [4][16 rows][2].
struct NibbleStrip {
  static constexpr bool WIDE = false;
  static constexpr int64_t FOURS = SUBGROUP / 4;
  alignas(32) uint8_t values[GROUP / 4][STRIP][4];
  alignas(32) int16_t factors[GROUP / SUBGROUP][STRIP][2];
  alignas(32) float scales[STRIP];

  void unpack(const StripSource& from, int64_t g);
  template <int M>
  void add(const IntegerRow& layout, const char* packed, int64_t g, float* y) const;
};

inline void NibbleStrip::unpack(const StripSource& from, int64_t g) {
  char room[STRIP][GROUP / 2];
  const char* rows[STRIP];
  uint32_t words[STRIP];
  open_group<uint32_t>(from, g, room, rows, words, scales);
  for (int64_t j = 0; j < STRIP; j += 8) {
    const __m256i word = load256(words + j);
    for (int s = 0; s < 4; s++) {
      const __m256i factor =
          _mm256_and_si256(_mm256_srli_epi32(word, 16 + 4 * s), _mm256_set1_epi32(15));
      _mm256_store_si256(reinterpret_cast<__m256i*>(factors[s][j]),
                         _mm256_or_si256(factor, _mm256_slli_epi32(factor, 16)));
    }
  }
  const __m256i mask = _mm256_set1_epi8(15);
  for (int64_t j = 0; j < STRIP; j += 8) {
    for (int64_t half = 0; half < 2; half++) {
      // 32 bytes of a row: columns 0 to 31 in their lower halves, the next 32 in the upper.
      __m256i fours[8];
      for (int i = 0; i < 8; i++) fours[i] = load256(rows[j + i] + half * 32);
      transpose8(fours);
      for (int64_t f = 0; f < FOURS; f++) {
        const auto to = [&](int64_t upper) {
          return reinterpret_cast<__m256i*>(values[(half * 2 + upper) * FOURS + f][j]);
        };
        _mm256_store_si256(to(0), _mm256_and_si256(fours[f], mask));
        _mm256_store_si256(to(1), _mm256_and_si256(_mm256_srli_epi16(fours[f], 4), mask));
      }
    }
  }
}

template <int M>
void NibbleStrip::add(const IntegerRow& layout, const char* packed, int64_t g, float* y) const {
  const int64_t stride = layout.stride();
  __m256i sums[M][2];
  for (int i = 0; i < M; i++) sums[i][0] = sums[i][1] = _mm256_setzero_si256();
  // What q + 8 has too much, of 32 columns at a time, in all lanes of eight bytes.
  __m256i eights[M];
  for (int i = 0; i < M; i++) {
    eights[i] = _mm256_set1_epi64x(load_at<int64_t>(layout.eights(packed + i * stride), g));
  }
  for (int64_t s = 0; s < GROUP / SUBGROUP; s++) {
    const char* x = packed + g * GROUP + s * SUBGROUP;
    // Sums of 16 columns in int16, from which the excess is taken beforehand, that of all 32 from
    // the first: when all are added, their magnitude is at most 16 * 8 * 127, twice.
    const int32_t lower = static_cast<int32_t>(0x80800100 + 0x0202 * s);
    __m256i part[M][2];
    for (int i = 0; i < M; i++) {
      const __m256i excess = _mm256_shuffle_epi8(eights[i], _mm256_set1_epi32(lower));
      part[i][0] = part[i][1] = _mm256_sub_epi16(_mm256_setzero_si256(), excess);
    }
#pragma GCC unroll 8
    for (int64_t f = 0; f < FOURS; f++) {
      const uint8_t* w = values[s * FOURS + f][0];
      const __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
      const __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + 32));
      for (int i = 0; i < M; i++) {
        const __m256i four = _mm256_set1_epi32(load_at<int32_t>(x + i * stride, f));
        part[i][0] = _mm256_add_epi16(part[i][0], _mm256_maddubs_epi16(low, four));
        part[i][1] = _mm256_add_epi16(part[i][1], _mm256_maddubs_epi16(high, four));
        hold(part[i][0]);
        hold(part[i][1]);
      }
    }
    for (int h = 0; h < 2; h++) {
      const __m256i factor = _mm256_load_si256(reinterpret_cast<const __m256i*>(factors[s][h * 8]));
      for (int i = 0; i < M; i++) {
        sums[i][h] = _mm256_add_epi32(sums[i][h], _mm256_madd_epi16(part[i][h], factor));
      }
    }
  }
  add_group(sums, scales, layout, packed, g, y);
}

}  // namespace
}  // namespace moela
