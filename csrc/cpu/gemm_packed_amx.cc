// Products in AMX with INT8 and INT4: integer_rows.h says what they compute. Few rows are
// AVX-512's own.
#if defined(__x86_64__)

#include "amx.h"

namespace moela {
namespace {

constexpr int64_t MAX_TILES = 6;  // whose sums are kept at once

// 16 rows, packed: for each group two tiles of values, then all scales, f32 [groups][16].
struct IntegerTile {
  int64_t groups;
  int64_t bytes() const { return groups * (2 * TILE_BYTES + TILE * 4); }
  float* scales(char* tile) const {
    return reinterpret_cast<float*>(tile + groups * 2 * TILE_BYTES);
  }
  const float* scales(const char* tile) const {
    return reinterpret_cast<const float*>(tile + groups * 2 * TILE_BYTES);
  }
};

void pack_integers(int64_t m, int64_t k, const float* const* rows, char* out) {
  const IntegerTile layout{groups_of(k)};
  alignas(64) int8_t q[TILE][GROUP];
  for (int64_t first = 0; first < m; first += TILE) {
    const int64_t count = at_most(TILE, m - first);
    memset(q, 0, sizeof q);
    for (int64_t g = 0; g < layout.groups; g++) {
      float* scales = layout.scales(out) + g * TILE;
      for (int64_t i = 0; i < TILE; i++) {
        scales[i] = i < count ? quantize_row_group(rows[first + i], k, g, q[i]).scale : 0;
      }
      for (int half = 0; half < 2; half++) {
        __m512i words[16];
        for (int i = 0; i < 16; i++) words[i] = load512(q[i] + half * 64);
        transpose16(words);
        for (int i = 0; i < 16; i++) {
          _mm512_storeu_si512(out + (g * 2 + half) * TILE_BYTES + i * 64, words[i]);
        }
      }
    }
    out += layout.bytes();
  }
}

// Adds a group's integer sums to y, [16 rows of the weight][16 of the input].
void add_group(const int32_t* sums, const float* w_scales, __m512 x_scales, float* y) {
  for (int j = 0; j < 16; j++) {
    const __m512 scale = _mm512_mul_ps(x_scales, _mm512_set1_ps(w_scales[j]));
    const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + j * TILE));
    _mm512_store_ps(y + j * TILE, _mm512_fmadd_ps(sum, scale, _mm512_load_ps(y + j * TILE)));
  }
}

// The tiles of one group: one strip of the weight or two, with one tile of the input or two.
template <bool TWO, bool BOTH>
void multiply_group(const StripGroup* strips, const char* x, const char* next) {
  _tile_zero(0);
  if (BOTH) _tile_zero(1);
  if (TWO) _tile_zero(2);
  if (TWO && BOTH) _tile_zero(3);
  for (int64_t half = 0; half < 2; half++) {
    _tile_loadd(4, strips[0].values + half * 64, strips[0].stride);
    _tile_loadd(6, x + half * TILE_BYTES, 64);
    _tile_dpbssd(0, 4, 6);
    if (BOTH) {
      _tile_loadd(7, next + half * TILE_BYTES, 64);
      _tile_dpbssd(1, 4, 7);
    }
    if (!TWO) continue;
    _tile_loadd(5, strips[1].values + half * 64, strips[1].stride);
    _tile_dpbssd(2, 5, 6);
    if (BOTH) _tile_dpbssd(3, 5, 7);
  }
}

// Two strips of the weight with two tiles of the input at a time, so that each is loaded half as
// often.
template <class W, bool TWO>
void strips(const WeightRows& b, int64_t j, int64_t n, int64_t count, const char* x,
            float (*y)[MAX_TILES][TILE * STRIP]) {
  constexpr int64_t S = TWO ? 2 : 1;
  const IntegerTile layout{groups_of(b.cols)};
  // A tile cannot be loaded from stores that have not reached the cache: groups are laid out one
  // ahead.
  alignas(64) int8_t room[2][S][STRIP * GROUP];
  StripGroup groups[2][S];
  alignas(64) int32_t sums[4][TILE * STRIP];
  const auto lay_out = [&](int64_t g) {
    for (int64_t s = 0; s < S; s++) {
      const int64_t row = j + s * STRIP;
      strip_group<W, S * STRIP>(b, b.first + row, n - row, g, room[g % 2][s], groups[g % 2][s]);
    }
  };
  for (int64_t s = 0; s < S; s++) memset(y[s], 0, count * sizeof y[s][0]);
  lay_out(0);
  for (int64_t g = 0; g < layout.groups; g++) {
    const StripGroup* group = groups[g % 2];
    if (g + 1 < layout.groups) lay_out(g + 1);
    const auto add = [&](int s, int64_t t, const int32_t* of) {
      const float* scales = layout.scales(x + t * layout.bytes()) + g * TILE;
      add_group(of, group[s].scales, _mm512_loadu_ps(scales), y[s][t]);
    };
    for (int64_t t = 0; t < count; t += 2) {
      const bool both = t + 1 < count;
      const char* tile = x + t * layout.bytes() + g * 2 * TILE_BYTES;
      if (both) {
        multiply_group<TWO, true>(group, tile, tile + layout.bytes());
      } else {
        multiply_group<TWO, false>(group, tile, tile);
      }
      _tile_stored(0, sums[0], 64);
      if (both) _tile_stored(1, sums[1], 64);
      if (TWO) _tile_stored(2, sums[2], 64);
      if (TWO && both) _tile_stored(3, sums[3], 64);
      add(0, t, sums[0]);
      if (both) add(0, t + 1, sums[1]);
      if (!TWO) continue;
      add(1, t, sums[2]);
      if (both) add(1, t + 1, sums[3]);
    }
  }
}

template <class W>
void many_rows(const WeightRows& b, int64_t m, int64_t n, const char* packed, float* c, int64_t ldc,
               bool add) {
  const Tiles tiles;
  const IntegerTile layout{groups_of(b.cols)};
  alignas(64) float y[2][MAX_TILES][TILE * STRIP];
  for (int64_t panel = 0; panel < tiles_of(m); panel += MAX_TILES) {
    const int64_t count = at_most(MAX_TILES, tiles_of(m) - panel);
    const char* x = packed + panel * layout.bytes();
    for (int64_t j = 0; j < n; j += 2 * STRIP) {
      const bool two = j + STRIP < n;
      if (two) {
        strips<W, true>(b, j, n, count, x, y);
      } else {
        strips<W, false>(b, j, n, count, x, y);
      }
      for (int64_t s = 0; s < (two ? 2 : 1); s++) {
        for (int64_t t = 0; t < count; t++) {
          const int64_t row = (panel + t) * TILE, column = j + s * STRIP;
          store_transposed(y[s][t], m - row, n - column, c + row * ldc + column, ldc, add);
        }
      }
    }
  }
}

}  // namespace

int64_t packed_bytes_amx(int32_t dtype, int64_t m, int64_t k) {
  if (dtype == MOELA_BF16) return packed_bytes_bf16_amx(m, k);
  if (m < MANY_ROWS) return packed_bytes_avx512(dtype, m, k);
  if (dtype != MOELA_INT8 && dtype != MOELA_INT4) return 0;
  return tiles_of(m) * IntegerTile{groups_of(k)}.bytes();
}

void pack_amx(int32_t dtype, int64_t m, int64_t k, const float* const* rows, char* out) {
  if (dtype == MOELA_BF16) return pack_bf16_amx(m, k, rows, out);
  if (m < MANY_ROWS) return pack_avx512(dtype, m, k, rows, out);
  pack_integers(m, k, rows, out);
}

void gemm_packed_amx(const WeightRows& b, int64_t m, int64_t n, const char* packed, float* c,
                     int64_t ldc, bool add) {
  if (b.dtype == MOELA_BF16) return gemm_bf16_amx(b, m, n, packed, c, ldc, add);
  if (m < MANY_ROWS) return gemm_packed_avx512(b, m, n, packed, c, ldc, add);
  if (b.dtype == MOELA_INT8) return many_rows<VnniInt8>(b, m, n, packed, c, ldc, add);
  many_rows<VnniInt4>(b, m, n, packed, c, ldc, add);
}

}  // namespace moela

#endif
