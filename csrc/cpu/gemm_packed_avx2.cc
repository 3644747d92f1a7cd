// Products in AVX2 with INT8 and INT4: integer_rows.h says what they compute.
//
// Few rows: packed_avx2.h. Many rows: strip_avx2.h.
#if defined(__x86_64__)

#include "strip_avx2.h"

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
    __m256i first = load256(w), second = load256(w + 32);
    // Otherwise the compiler loads them twice, and loads are what takes longest here.
    hold(first);
    hold(second);
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

constexpr int64_t PANEL = 96;  // rows of the input whose sums are kept at once
// Rows of the input whose integer sums are kept in registers, two vectors a row: with more the
// compiler moves sums to memory and back.
constexpr int TILE = 4;

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
