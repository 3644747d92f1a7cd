// The running softmax of MLA_PREFILL in AMX, 16 rows and a page of keys at a time. Internal
// linkage: see avx2.h.
#pragma once

#include "amx.h"

namespace moela {
namespace {

constexpr int64_t PAGE = MOELA_PAGE_TOKENS;
constexpr int64_t KEY_TILES = PAGE / TILE;
constexpr int64_t TILE_FLOATS = TILE_BYTES / 4;

// e^x for x <= 0 as kernels_avx2.cc has it; what would not be normal is 0. A NaN stays.
inline __m512 exp_negative(__m512 x) {
  const __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.f), _CMP_NLT_UQ);
  x = _mm512_max_ps(_mm512_set1_ps(-87.f), x);
  const __m512i i = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)));
  const __m512 whole = _mm512_cvtepi32_ps(i);
  __m512 r = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0x1.62e400p-1f), x);
  r = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0x1.7f7d1cp-20f), r);
  __m512 p = _mm512_set1_ps(0x1.6a2352p-10f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.123a6cp-7f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.5558f4p-5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.55549p-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.fffffcp-2f));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r);
  p = _mm512_add_ps(p, _mm512_set1_ps(1));
  const __m512i power = _mm512_slli_epi32(_mm512_add_epi32(i, _mm512_set1_epi32(127)), 23);
  return _mm512_maskz_mul_ps(normal, p, _mm512_castsi512_ps(power));
}

// scores [KEY_TILES][16 rows][16 keys]: times `scale` they become weights, bf16 [2][16 rows][32
// keys], of `seen` + i keys in row i and 0 beyond. most, sums [16]: the rows' state. shrink [16]:
// what results so far have to be multiplied by; returns whether that changes any.
inline bool softmax_tile(int64_t seen, float scale, float* scores, float* most, float* sums,
                         char* weights, float* shrink) {
  const __m512 none = _mm512_set1_ps(-__builtin_inff()), factor = _mm512_set1_ps(scale);
  const auto lanes = [&](int64_t i, int64_t k) {
    const int64_t left = seen + i - k * TILE;
    return left > 0 ? first_lanes16(left) : static_cast<__mmask16>(0);
  };
  __m512i words[16];
  for (int64_t i = 0; i < TILE; i++) {
    __m512 largest = none;
    for (int64_t k = 0; k < KEY_TILES; k++) {
      float* at = scores + k * TILE_FLOATS + i * TILE;
      const __m512 score = _mm512_mul_ps(_mm512_load_ps(at), factor);
      _mm512_store_ps(at, score);
      // A NaN leaves the largest so far.
      largest = _mm512_max_ps(_mm512_mask_mov_ps(none, lanes(i, k), score), largest);
    }
    words[i] = _mm512_castps_si512(largest);
  }
  transpose16(words);
  const __m512 before = _mm512_load_ps(most);
  __m512 largest = before;
  for (__m512i word : words) largest = _mm512_max_ps(_mm512_castsi512_ps(word), largest);
  _mm512_store_ps(most, largest);
  for (int64_t i = 0; i < TILE; i++) {
    __m512 x[KEY_TILES];
    for (int64_t k = 0; k < KEY_TILES; k++) {
      const __m512 score = _mm512_load_ps(scores + k * TILE_FLOATS + i * TILE);
      const __m512 weight = exp_negative(_mm512_sub_ps(score, _mm512_set1_ps(most[i])));
      x[k] = _mm512_maskz_mov_ps(lanes(i, k), weight);
    }
    for (int64_t half = 0; half < 2; half++) {
      const __m512bh rounded = _mm512_cvtne2ps_pbh(x[2 * half + 1], x[2 * half]);
      _mm512_store_si512(weights + half * TILE_BYTES + i * 64, reinterpret_cast<__m512i>(rounded));
    }
    const __m512 sum = _mm512_add_ps(_mm512_add_ps(x[0], x[1]), _mm512_add_ps(x[2], x[3]));
    words[i] = _mm512_castps_si512(sum);
  }
  transpose16(words);
  const __m512 by = exp_negative(_mm512_sub_ps(before, largest));
  __m512 sum = _mm512_mul_ps(_mm512_load_ps(sums), by);
  for (__m512i word : words) sum = _mm512_add_ps(sum, _mm512_castsi512_ps(word));
  _mm512_store_ps(sums, sum);
  _mm512_store_ps(shrink, by);
  return _mm512_cmp_ps_mask(by, _mm512_set1_ps(1), _CMP_NEQ_UQ) != 0;
}

}  // namespace
}  // namespace moela
