// What the AMX files share. Internal linkage: see avx2.h.
//
// A tile of weights is 16 rows of 64 bytes as they lie in memory; a tile of the input is 16 rows in
// words of four bytes, packed beforehand.
#pragma once

#include "avx512.h"

namespace moela {

int64_t packed_bytes_bf16_amx(int64_t m, int64_t k);
void pack_bf16_amx(int64_t m, int64_t k, const float* const* rows, char* out);
void gemm_bf16_amx(const WeightRows& b, int64_t m, int64_t n, const char* packed, float* c,
                   int64_t ldc, bool add);

namespace {

// From so many rows on products are AMX's.
constexpr int64_t MANY_ROWS = 4;
constexpr int64_t TILE = 16;  // rows of the input in a tile
constexpr int64_t TILE_BYTES = 1024;

struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// All eight tiles 16 rows of 64 bytes, while it lives.
class Tiles {
 public:
  Tiles() {
    TileConfig config = {};
    config.palette = 1;
    for (int t = 0; t < 8; t++) {
      config.row_bytes[t] = 64;
      config.rows[t] = 16;
    }
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

inline int64_t tiles_of(int64_t m) { return (m + TILE - 1) / TILE; }
inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// The transposed sums of a tile, [16 rows of the weight][16 rows of the input], to c.
inline void store_transposed(const float* y, int64_t rows, int64_t columns, float* c, int64_t ldc,
                             bool add) {
  __m512i words[16];
  for (int j = 0; j < 16; j++) words[j] = load512(y + j * TILE);
  transpose16(words);
  const __mmask16 lanes = first_lanes16(columns);
  for (int i = 0; i < 16; i++) {
    if (i >= rows) return;
    __m512 sum = _mm512_castsi512_ps(words[i]);
    float* to = c + i * ldc;
    if (add) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(lanes, to), sum);
    _mm512_mask_storeu_ps(to, lanes, sum);
  }
}

}  // namespace
}  // namespace moela
