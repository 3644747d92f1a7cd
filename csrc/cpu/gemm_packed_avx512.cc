// Products in AVX-512 with VNNI, with INT8 and INT4: integer_rows.h says what they compute.
//
// Few rows: packed_avx2.h. Many rows: 16 rows of the weight are laid out in words of four columns,
// a group at a time, so that lanes are rows of the weight and no sum crosses lanes.
#if defined(__x86_64__)

#include "avx512.h"

namespace moela {
namespace {

constexpr int64_t MANY_ROWS = 4;
constexpr int64_t PANEL = 96;  // rows of the input whose sums are kept at once

// A group of 16 rows of the weight: values + 128, [32 words][16 rows][4].
struct Words {
  alignas(64) uint8_t values[GROUP / 4][STRIP][4];
};

void lay_out(const StripGroup& group, Words& words) {
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  for (int half = 0; half < 2; half++) {
    __m512i rows[16];
    for (int j = 0; j < 16; j++) {
      rows[j] = _mm512_xor_si512(load512(group.values + j * group.stride + half * 64), flip);
    }
    transpose16(rows);
    for (int j = 0; j < 16; j++) _mm512_store_si512(words.values[half * 16 + j], rows[j]);
  }
}

// M packed rows with a strip: adds a group to y [M][16].
template <int M>
void group_tile(const Words& words, __m512 w_scales, const IntegerRow& layout, const char* packed,
                int64_t g, float* y) {
  const int64_t stride = layout.stride();
  const char* x = packed + g * GROUP;
  // Whole loops are unrolled, or the sums would not stay in registers.
  __m512i sums[M];
#pragma GCC unroll 12
  for (int i = 0; i < M; i++) {
    const int16_t* eights = layout.eights(packed + i * stride) + g * 4;
    sums[i] = _mm512_set1_epi32(-16 * (eights[0] + eights[1] + eights[2] + eights[3]));
  }
  for (int64_t word = 0; word < GROUP / 4; word++) {
    const __m512i w = _mm512_load_si512(words.values[word]);
#pragma GCC unroll 12
    for (int i = 0; i < M; i++) {
      sums[i] = _mm512_dpbusd_epi32(sums[i], w,
                                    _mm512_set1_epi32(load_at<int32_t>(x + i * stride, word)));
      hold(sums[i]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < M; i++) {
    const __m512 scale =
        _mm512_mul_ps(_mm512_set1_ps(layout.scales(packed + i * stride)[g]), w_scales);
    float* to = y + i * STRIP;
    _mm512_store_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[i]), scale, _mm512_load_ps(to)));
  }
}

void group_tiles(const Words& words, __m512 w_scales, const IntegerRow& layout, int64_t m,
                 const char* packed, int64_t g, float* y) {
  int64_t i = 0;
  const auto tile = [&](auto function, int64_t rows) {
    function(words, w_scales, layout, packed + i * layout.stride(), g, y + i * STRIP);
    i += rows;
  };
  while (m - i >= 12) tile(group_tile<12>, 12);
  if (m - i >= 8) tile(group_tile<8>, 8);
  if (m - i >= 4) tile(group_tile<4>, 4);
  if (m - i >= 2) tile(group_tile<2>, 2);
  if (m - i >= 1) tile(group_tile<1>, 1);
}

template <class W>
void many_rows(const WeightRows& b, int64_t m, int64_t n, const char* packed, float* c, int64_t ldc,
               bool add) {
  const IntegerRow layout(b.cols, false);
  alignas(64) int8_t room[STRIP * GROUP];
  alignas(64) float y[PANEL * STRIP];
  StripGroup group;
  Words words;
  for (int64_t panel = 0; panel < m; panel += PANEL) {
    const int64_t count = m - panel < PANEL ? m - panel : PANEL;
    for (int64_t j = 0; j < n; j += STRIP) {
      memset(y, 0, count * STRIP * sizeof(float));
      for (int64_t g = 0; g < layout.groups; g++) {
        strip_group<W, STRIP>(b, b.first + j, n - j, g, room, group);
        lay_out(group, words);
        group_tiles(words, _mm512_load_ps(group.scales), layout, count,
                    packed + panel * layout.stride(), g, y);
      }
      const __mmask16 lanes = first_lanes16(n - j);
      for (int64_t i = 0; i < count; i++) {
        float* to = c + (panel + i) * ldc + j;
        __m512 sum = _mm512_load_ps(y + i * STRIP);
        if (add) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(lanes, to), sum);
        _mm512_mask_storeu_ps(to, lanes, sum);
      }
    }
  }
}

template <class W>
void gemm(const WeightRows& b, int64_t m, int64_t n, const char* packed, float* c, int64_t ldc,
          bool add) {
  if (m >= MANY_ROWS) return many_rows<W>(b, m, n, packed, c, ldc, add);
  few_rows<W>(b, m, n, packed, c, ldc, add);
}

}  // namespace

int64_t packed_bytes_avx512(int32_t dtype, int64_t m, int64_t k) {
  if (dtype != MOELA_INT8 && dtype != MOELA_INT4) return 0;
  return m * IntegerRow(k, false).stride();
}

void pack_avx512(int32_t, int64_t m, int64_t k, const float* const* rows, char* out) {
  pack_rows(m, k, false, rows, out);
}

void gemm_packed_avx512(const WeightRows& b, int64_t m, int64_t n, const char* packed, float* c,
                        int64_t ldc, bool add) {
  if (b.dtype == MOELA_INT8) return gemm<VnniInt8>(b, m, n, packed, c, ldc, add);
  gemm<VnniInt4>(b, m, n, packed, c, ldc, add);
}

}  // namespace moela

#endif
