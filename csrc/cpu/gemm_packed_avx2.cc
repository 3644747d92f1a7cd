// Products in AVX2 with INT8 and INT4: integer_rows.h says what they compute.
//
// Few rows: packed_avx2.h. Many rows: 16 rows of the weight are unpacked to int16, a group at a
// time, so that lanes are rows of the weight and no sum crosses lanes.
#if defined(__x86_64__)

#include "packed_avx2.h"

namespace moela {
namespace {

// From so many rows on unpacking pays.
constexpr int64_t MANY_ROWS = 4;

bool is_wide(int64_t m) { return m >= MANY_ROWS; }

// ---- few rows --------------------------------------------------------------------------------

struct Int8 {
  static constexpr int32_t DTYPE = MOELA_INT8;
  static constexpr int64_t GROUP_BYTES = 128;
  using Word = uint16_t;  // of scales

  // sums of w q of 8 rows; of each the group's bytes are at rows[j] + offset.
  static __m256i sums(const char* const* rows, int64_t offset, const int8_t* q, const int16_t*,
                      __m256i) {
    __m256i x[4], magnitude[4], all[ROWS];
    for (int v = 0; v < 4; v++) {
      x[v] = load256(q + v * 32);
      magnitude[v] = _mm256_abs_epi8(x[v]);
    }
    const __m256i ones = _mm256_set1_epi16(1);
    for (int64_t j = 0; j < ROWS; j++) {
      const char* from = rows[j] + offset;
      // Pairs are at most 2 * 127 * 127: no saturation.
      __m256i pairs[4];
      for (int v = 0; v < 4; v++) {
        const __m256i w = _mm256_sign_epi8(load256(from + v * 32), x[v]);
        pairs[v] = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude[v], w), ones);
      }
      all[j] = _mm256_add_epi32(_mm256_add_epi32(pairs[0], pairs[1]),
                                _mm256_add_epi32(pairs[2], pairs[3]));
    }
    return lane_sums8(all);
  }
  static __m256i scale_bits(__m256i words) { return _mm256_slli_epi32(words, 16); }
};

// FACTORS[f] is f in all lanes.
struct FactorTable {
  alignas(32) int16_t lanes[16][16];
  constexpr FactorTable() : lanes() {
    for (int f = 0; f < 16; f++) {
      for (int i = 0; i < 16; i++) lanes[f][i] = static_cast<int16_t>(f);
    }
  }
};
constexpr FactorTable FACTORS;

struct Int4 {
  static constexpr int32_t DTYPE = MOELA_INT4;
  static constexpr int64_t GROUP_BYTES = 64;
  using Word = uint32_t;

  static __m256i factor(uint32_t word, int i) {
    // Bytes into the table: 32 a factor.
    const uint32_t at = (word >> (16 + 4 * i - 5)) & 0x1e0;
    return _mm256_load_si256(
        reinterpret_cast<const __m256i*>(reinterpret_cast<const char*>(FACTORS.lanes) + at));
  }
  // words: scales and factors of the 8 rows.
  static __m256i sums(const char* const* rows, int64_t offset, const int8_t* q,
                      const int16_t* eights, __m256i words) {
    alignas(32) uint32_t word[ROWS];
    _mm256_store_si256(reinterpret_cast<__m256i*>(word), words);
    __m256i x[4], all[ROWS];
    for (int v = 0; v < 4; v++) x[v] = load256(q + v * 32);
    const __m256i mask = _mm256_set1_epi8(15);
    for (int64_t j = 0; j < ROWS; j++) {
      const char* from = rows[j] + offset;
      const __m256i first = load256(from), second = load256(from + 32);
      const __m256i nibbles[4] = {
          _mm256_and_si256(first, mask), _mm256_and_si256(_mm256_srli_epi16(first, 4), mask),
          _mm256_and_si256(second, mask), _mm256_and_si256(_mm256_srli_epi16(second, 4), mask)};
      // Pairs are at most 2 * 15 * 127, and times a factor still far from 2^31.
      __m256i pairs[4];
      for (int v = 0; v < 4; v++) {
        pairs[v] = _mm256_madd_epi16(_mm256_maddubs_epi16(nibbles[v], x[v]), factor(word[j], v));
      }
      all[j] = _mm256_add_epi32(_mm256_add_epi32(pairs[0], pairs[1]),
                                _mm256_add_epi32(pairs[2], pairs[3]));
    }
    return _mm256_sub_epi32(lane_sums8(all), int4_excess(words, eights));
  }
  static __m256i scale_bits(__m256i words) { return _mm256_slli_epi32(words, 16); }
};

// ---- many rows -------------------------------------------------------------------------------

constexpr int64_t STRIP = 16;  // rows of the weight
constexpr int64_t PANEL = 96;  // rows of the input whose sums are kept at once

// A group of 16 rows of the weight: values [64 pairs of columns][16 rows][2], and scales [16].
struct UnpackedStrip {
  alignas(32) int16_t values[GROUP / 2][STRIP][2];
  alignas(32) float scales[STRIP];
};

// Eight rows of 16 int8 each, from rows[j]: pairs of columns of the eight rows, as int16.
void transpose_pairs(const int8_t* const* rows, int64_t offset, int16_t* to) {
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

// PRODUCTS[f][i] = (i - 8) f, twice for the two halves of a vector.
struct ProductTable {
  alignas(32) int8_t lanes[16][32];
  constexpr ProductTable() : lanes() {
    for (int f = 0; f < 16; f++) {
      for (int i = 0; i < 32; i++) lanes[f][i] = static_cast<int8_t>((i % 16 - 8) * f);
    }
  }
};
constexpr ProductTable PRODUCTS;

// 128 values q * factor of INT4.
void unpack_int4(const char* from, uint32_t word, int8_t* to) {
  const __m256i mask = _mm256_set1_epi8(15);
  for (int half = 0; half < 2; half++) {
    const __m256i bytes = load256(from + half * 32);
    const __m256i nibbles[2] = {_mm256_and_si256(bytes, mask),
                                _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask)};
    for (int i = 0; i < 2; i++) {
      const uint32_t factor = word >> (16 + 8 * half + 4 * i) & 15;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + half * 64 + i * 32),
                          _mm256_shuffle_epi8(load256(PRODUCTS.lanes[factor]), nibbles[i]));
    }
  }
}

template <class W>
void unpack_strip(int64_t row_bytes, const char* const* rows, const char* const* scales, int64_t g,
                  UnpackedStrip& strip) {
  const int8_t* values[STRIP];
  int8_t room[STRIP][GROUP];
  const int64_t offset = g * W::GROUP_BYTES;
  const bool whole = offset + W::GROUP_BYTES <= row_bytes;
  for (int64_t j = 0; j < STRIP; j++) {
    const uint32_t word = load_at<typename W::Word>(scales[j], g);
    strip.scales[j] = bf16_to_f32(static_cast<uint16_t>(word));
    const char* from = rows[j] + offset;
    char tail[W::GROUP_BYTES] = {};
    if (!whole) {
      memcpy(tail, from, row_bytes - offset);
      from = tail;
    }
    values[j] = room[j];
    if (W::DTYPE == MOELA_INT4) {
      unpack_int4(from, word, room[j]);
    } else if (whole) {
      values[j] = reinterpret_cast<const int8_t*>(from);
    } else {
      memcpy(room[j], tail, GROUP);
    }
  }
  for (int64_t at = 0; at < GROUP; at += 16) {
    transpose_pairs(values, at, strip.values[at / 2][0]);
    transpose_pairs(values + 8, at, strip.values[at / 2][8]);
  }
}

// M packed rows with a strip: adds a group to y [M][16].
template <int M>
void group_tile(const UnpackedStrip& strip, const IntegerRow& layout, const char* packed, int64_t g,
                float* y) {
  const int64_t stride = layout.stride();
  const char* x = packed + g * GROUP * 2;
  __m256i sums[M][2];
  for (int i = 0; i < M; i++) sums[i][0] = sums[i][1] = _mm256_setzero_si256();
  for (int64_t pair = 0; pair < GROUP / 2; pair++) {
    const __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(strip.values[pair][0]));
    const __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(strip.values[pair][8]));
    for (int i = 0; i < M; i++) {
      const __m256i both = _mm256_set1_epi32(load_at<int32_t>(x + i * stride, pair));
      sums[i][0] = _mm256_add_epi32(sums[i][0], _mm256_madd_epi16(low, both));
      sums[i][1] = _mm256_add_epi32(sums[i][1], _mm256_madd_epi16(high, both));
    }
  }
  for (int i = 0; i < M; i++) {
    const __m256 scale = _mm256_set1_ps(layout.scales(packed + i * stride)[g]);
    for (int h = 0; h < 2; h++) {
      float* to = y + i * STRIP + h * 8;
      const __m256 both = _mm256_mul_ps(scale, _mm256_load_ps(strip.scales + h * 8));
      _mm256_storeu_ps(to,
                       _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[i][h]), both, _mm256_loadu_ps(to)));
    }
  }
}

void group_tiles(const UnpackedStrip& strip, const IntegerRow& layout, int64_t m,
                 const char* packed, int64_t g, float* y) {
  int64_t i = 0;
  const auto at = [&](int64_t row) { return packed + row * layout.stride(); };
  for (; m - i >= 6; i += 6) group_tile<6>(strip, layout, at(i), g, y + i * STRIP);
  float* to = y + i * STRIP;
  switch (m - i) {
    case 5:
      return group_tile<5>(strip, layout, at(i), g, to);
    case 4:
      return group_tile<4>(strip, layout, at(i), g, to);
    case 3:
      return group_tile<3>(strip, layout, at(i), g, to);
    case 2:
      return group_tile<2>(strip, layout, at(i), g, to);
    case 1:
      return group_tile<1>(strip, layout, at(i), g, to);
    default:
      return;
  }
}

template <class W>
void many_rows(const WeightRows& b, int64_t m, int64_t n, const char* packed, float* c, int64_t ldc,
               bool add) {
  const IntegerRow layout(b.cols, true);
  const int64_t row_bytes = weight_row_bytes(W::DTYPE, b.cols);
  const int64_t scale_bytes = scale_row_bytes(W::DTYPE, b.cols);
  UnpackedStrip strip;
  alignas(32) float y[PANEL * STRIP];
  for (int64_t panel = 0; panel < m; panel += PANEL) {
    const int64_t count = m - panel < PANEL ? m - panel : PANEL;
    for (int64_t j = 0; j < n; j += STRIP) {
      const int64_t columns = n - j < STRIP ? n - j : STRIP;
      const char* rows[STRIP];
      const char* scales[STRIP];
      for (int64_t r = 0; r < STRIP; r++) {
        const int64_t row = b.first + j + (r < columns ? r : columns - 1);
        rows[r] = b.data + row * row_bytes;
        scales[r] = b.scales + row * scale_bytes;
      }
      memset(y, 0, count * STRIP * sizeof(float));
      for (int64_t g = 0; g < layout.groups; g++) {
        unpack_strip<W>(row_bytes, rows, scales, g, strip);
        group_tiles(strip, layout, count, packed + panel * layout.stride(), g, y);
      }
      for (int64_t i = 0; i < count; i++) {
        float* to = c + (panel + i) * ldc + j;
        for (int64_t h = 0; h < columns; h += 8) {
          __m256 sum = _mm256_load_ps(y + i * STRIP + h);
          const __m256i lanes = first_lanes(columns - h);
          if (add) sum = _mm256_add_ps(_mm256_maskload_ps(to + h, lanes), sum);
          _mm256_maskstore_ps(to + h, lanes, sum);
        }
      }
    }
  }
}

template <class W>
void gemm(const WeightRows& b, int64_t m, int64_t n, const char* packed, float* c, int64_t ldc,
          bool add) {
  if (is_wide(m)) return many_rows<W>(b, m, n, packed, c, ldc, add);
  few_rows<W>(b, m, n, packed, c, ldc, add);
}

}  // namespace

int64_t packed_bytes_avx2(int32_t dtype, int64_t m, int64_t k) {
  if (dtype != MOELA_INT8 && dtype != MOELA_INT4) return 0;
  return m * IntegerRow(k, is_wide(m)).stride();
}

void pack_avx2(int32_t, int64_t m, int64_t k, const float* const* rows, char* out) {
  pack_rows(m, k, is_wide(m), rows, out);
}

void gemm_packed_avx2(const WeightRows& b, int64_t m, int64_t n, const char* packed, float* c,
                      int64_t ldc, bool add) {
  if (b.dtype == MOELA_INT8) return gemm<Int8>(b, m, n, packed, c, ldc, add);
  gemm<Int4>(b, m, n, packed, c, ldc, add);
}

}  // namespace moela

#endif
