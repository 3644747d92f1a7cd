// Products in AVX2 with INT8 and INT4: integer_rows.h says what they compute.
//
// Few rows: packed_avx2.h. Many rows: 16 rows of the weight are unpacked a group at a time, so that
// lanes are rows of the weight and no sum crosses lanes. INT8 becomes int16; INT4 stays bytes,
// whose products fit int16 by eights: half as many multiplications.
#if defined(__x86_64__)

#include "packed_avx2.h"

namespace moela {
namespace {

// From so many rows on unpacking pays.
constexpr int64_t MANY_ROWS = 4;

// ---- few rows --------------------------------------------------------------------------------

struct Int8 {
  static constexpr int32_t DTYPE = MOELA_INT8;
  static constexpr int64_t GROUP_BYTES = 128;
  using Word = uint16_t;  // of scales

  static void prepare(RunScales&) {}
  // Eight parts of the sum of w q over a group.
  static __m256i sum(const char* w, const int8_t* q, const RunScales&, int64_t) {
    // Pairs are at most 2 * 127 * 127: no saturation.
    const auto pairs = [&](int v) {
      const __m256i x = load256(q + v * 32);
      const __m256i signed_w = _mm256_sign_epi8(load256(w + v * 32), x);
      return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(x), signed_w),
                               _mm256_set1_epi16(1));
    };
    return _mm256_add_epi32(_mm256_add_epi32(pairs(0), pairs(1)),
                            _mm256_add_epi32(pairs(2), pairs(3)));
  }
  static __m256i excess(__m256i, const int16_t*) { return _mm256_setzero_si256(); }
};

struct Int4 {
  static constexpr int32_t DTYPE = MOELA_INT4;
  static constexpr int64_t GROUP_BYTES = 64;
  using Word = uint32_t;

  static void prepare(RunScales& run) { int4_factors(true, run); }
  // Eight parts of the sum of factor (w + 8) q over group g of a run.
  static __m256i sum(const char* w, const int8_t* q, const RunScales& run, int64_t g) {
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i first = load256(w), second = load256(w + 32);
    // Pairs are at most 2 * 15 * 127, and times a factor still far from 2^31.
    const auto pairs = [&](int v, __m256i nibbles) {
      return _mm256_madd_epi16(
          _mm256_maddubs_epi16(_mm256_and_si256(nibbles, mask), load256(q + v * 32)),
          _mm256_set1_epi32(static_cast<int32_t>(run.factors[v][g])));
    };
    return _mm256_add_epi32(
        _mm256_add_epi32(pairs(0, first), pairs(1, _mm256_srli_epi16(first, 4))),
        _mm256_add_epi32(pairs(2, second), pairs(3, _mm256_srli_epi16(second, 4))));
  }
  static __m256i excess(__m256i words, const int16_t* eights) { return int4_excess(words, eights); }
};

// ---- many rows -------------------------------------------------------------------------------

constexpr int64_t STRIP = 16;  // rows of the weight
constexpr int64_t PANEL = 96;  // rows of the input whose sums are kept at once
// Rows of the input whose integer sums are kept in registers, two vectors a row: with more the
// compiler moves sums to memory and back.
constexpr int TILE = 4;

// Where a group of 16 rows of the weight comes from.
struct StripSource {
  int64_t row_bytes;
  const char* rows[STRIP];
  const char* scales[STRIP];
};

// The words of scales of a group, and in `to` their scales; returns in `values` where the group's
// bytes are: in place where all are there, else in `room` with zeros behind them.
template <class W>
void open_group(const StripSource& from, int64_t g, char (*room)[W::GROUP_BYTES],
                const char** values, uint32_t* words, float* to) {
  const int64_t offset = g * W::GROUP_BYTES;
  const bool whole = offset + W::GROUP_BYTES <= from.row_bytes;
  for (int64_t j = 0; j < STRIP; j++) {
    words[j] = load_at<typename W::Word>(from.scales[j], g);
    to[j] = bf16_to_f32(static_cast<uint16_t>(words[j]));
    values[j] = from.rows[j] + offset;
    // The same columns of the next rows, which come after these are done.
    _mm_prefetch(values[j] + STRIP * from.row_bytes, _MM_HINT_T1);
    if (W::GROUP_BYTES > 64) _mm_prefetch(values[j] + STRIP * from.row_bytes + 64, _MM_HINT_T1);
    if (whole) continue;
    memset(room[j], 0, W::GROUP_BYTES);
    memcpy(room[j], values[j], from.row_bytes - offset);
    values[j] = room[j];
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
void transpose_pairs(const char* const* rows, int64_t offset, int16_t* to) {
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

void PairStrip::unpack(const StripSource& from, int64_t g) {
  char room[STRIP][GROUP];
  const char* rows[STRIP];
  uint32_t words[STRIP];
  open_group<Int8>(from, g, room, rows, words, scales);
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
  for (int64_t pair = 0; pair < GROUP / 2; pair++) {
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

void NibbleStrip::unpack(const StripSource& from, int64_t g) {
  char room[STRIP][Int4::GROUP_BYTES];
  const char* rows[STRIP];
  uint32_t words[STRIP];
  open_group<Int4>(from, g, room, rows, words, scales);
  for (int64_t j = 0; j < STRIP; j++) {
    for (int s = 0; s < 4; s++) {
      factors[s][j][0] = factors[s][j][1] = static_cast<int16_t>(words[j] >> (16 + 4 * s) & 15);
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
  for (int64_t s = 0; s < GROUP / SUBGROUP; s++) {
    const char* x = packed + g * GROUP + s * SUBGROUP;
    // Sums of 16 columns in int16, from which what q + 8 has too much is taken beforehand, for all
    // 32 from the first: their magnitude is at most 16 * 8 * 127, twice, when all are added.
    __m256i part[M][2];
    for (int i = 0; i < M; i++) {
      const int16_t eights = layout.eights(packed + i * stride)[g * 4 + s];
      part[i][0] = part[i][1] = _mm256_set1_epi32(static_cast<uint16_t>(-eights));
    }
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

template <class Strip>
void group_tiles(const Strip& strip, const IntegerRow& layout, int64_t m, const char* packed,
                 int64_t g, float* y) {
  int64_t i = 0;
  const auto at = [&](int64_t row) { return packed + row * layout.stride(); };
  for (; m - i >= TILE; i += TILE) {
    strip.template add<TILE>(layout, at(i), g, y + i * STRIP);
  }
  float* to = y + i * STRIP;
  if (m - i == 3) return strip.template add<3>(layout, at(i), g, to);
  if (m - i == 2) return strip.template add<2>(layout, at(i), g, to);
  if (m - i == 1) return strip.template add<1>(layout, at(i), g, to);
}

template <class Strip>
void many_rows(const WeightRows& b, int64_t m, int64_t n, const char* packed, float* c, int64_t ldc,
               bool add) {
  const IntegerRow layout(b.cols, Strip::WIDE);
  const int64_t scale_bytes = scale_row_bytes(b.dtype, b.cols);
  StripSource from;
  from.row_bytes = weight_row_bytes(b.dtype, b.cols);
  Strip strip;
  alignas(32) float y[PANEL * STRIP];
  for (int64_t panel = 0; panel < m; panel += PANEL) {
    const int64_t count = m - panel < PANEL ? m - panel : PANEL;
    for (int64_t j = 0; j < n; j += STRIP) {
      const int64_t columns = n - j < STRIP ? n - j : STRIP;
      for (int64_t r = 0; r < STRIP; r++) {
        const int64_t row = b.first + j + (r < columns ? r : columns - 1);
        from.rows[r] = b.data + row * from.row_bytes;
        from.scales[r] = b.scales + row * scale_bytes;
      }
      memset(y, 0, count * STRIP * sizeof(float));
      for (int64_t g = 0; g < layout.groups; g++) {
        strip.unpack(from, g);
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

}  // namespace

// Rows are packed as the products of their number take them.
static bool is_wide(int32_t dtype, int64_t m) {
  return m >= MANY_ROWS && (dtype == MOELA_INT8 ? PairStrip::WIDE : NibbleStrip::WIDE);
}

int64_t packed_bytes_avx2(int32_t dtype, int64_t m, int64_t k) {
  if (dtype != MOELA_INT8 && dtype != MOELA_INT4) return 0;
  return m * IntegerRow(k, is_wide(dtype, m)).stride();
}

void pack_avx2(int32_t dtype, int64_t m, int64_t k, const float* const* rows, char* out) {
  pack_rows(m, k, is_wide(dtype, m), rows, out);
}

void gemm_packed_avx2(const WeightRows& b, int64_t m, int64_t n, const char* packed, float* c,
                      int64_t ldc, bool add) {
  if (b.dtype == MOELA_INT8) {
    return m >= MANY_ROWS ? many_rows<PairStrip>(b, m, n, packed, c, ldc, add)
                          : few_rows<Int8>(b, m, n, packed, c, ldc, add);
  }
  return m >= MANY_ROWS ? many_rows<NibbleStrip>(b, m, n, packed, c, ldc, add)
                        : few_rows<Int4>(b, m, n, packed, c, ldc, add);
}

}  // namespace moela

#endif
