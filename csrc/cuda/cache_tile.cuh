// A tile of cache rows in shared memory, from a type with scales to bf16.
#pragma once

#include "cuda/cache_read.cuh"

namespace moela::cuda {

// KEYS rows of R + DR elements in place: as they are in the cache, one after another at the end of
// KEYS * STRIDE bytes, they become bf16 rows STRIDE apart; those from `rows` on become zeros. By
// 8 KEYS threads from 0 on, eight a row; `sync` brings together all THREADS that call it.
template <int DTYPE, int THREADS, int KEYS, int R, int DR, int STRIDE, class Sync>
__device__ __forceinline__ void cache_tile_to_bf16(char* tile, const uint8_t (*codes)[2], int rows,
                                                   const Sync& sync) {
  constexpr int WIDTH = R + DR, EIGHTS = WIDTH / 64;
  constexpr int ROW_BYTES = DTYPE == MOELA_INT6 ? WIDTH / 4 * 3 : WIDTH;
  static_assert(EIGHTS * 64 == WIDTH && R % 64 == 0 && DR % 32 == 0, "64 elements are of one part");
  const int row = threadIdx.x % THREADS / 8, column = threadIdx.x % 8 * 8;
  const bool mine = THREADS == 8 * KEYS || row < KEYS;
  CacheEight<DTYPE> eights[EIGHTS];
  float scale = 0, key_scale = 0;
  if (mine) {
    const char* raw = tile + KEYS * (STRIDE - ROW_BYTES) + row * ROW_BYTES;
#pragma unroll
    for (int j = 0; j < EIGHTS; j++) {
      eights[j].load(raw, column + 64 * j, cache_part(DTYPE, 64 * j, R, DR), R, DR);
    }
    scale = row < rows ? cache_scale(codes[row][0]) : 0;
    key_scale = row < rows ? cache_scale(codes[row][1]) : 0;
  }
  sync();
  if (!mine) return;
#pragma unroll
  for (int j = 0; j < EIGHTS; j++) {
    uint4 out = {0, 0, 0, 0};
    const CachePart part = cache_part(DTYPE, 64 * j, R, DR);
    if (row < rows) {
      out = cache_bf16<DTYPE>(eights[j], part == CachePart::KEY ? key_scale : scale,
                              column + 64 * j, part, R, DR);
    }
    *reinterpret_cast<uint4*>(tile + row * STRIDE + 2 * column + 128 * j) = out;
  }
}

}  // namespace moela::cuda
