// The producers of a wgmma product: one warpgroup that brings weights by the copy engine, each
// block its share of what its cluster needs, and gathers rows, 16 bytes a thread.
#pragma once

#include "cuda/wgmma_tables.cuh"

namespace moela::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Brings the operands of all tiles of this block, with 128 threads.
template <int MB, bool GATED, bool F32, int CLUSTER>
__device__ __forceinline__ void wgmma_produce(const CUtensorMap& first, const CUtensorMap& second,
                                              const WgmmaProblem& p, WgmmaTables& tables,
                                              WgmmaRing ring) {
  constexpr int ROUNDS = WGMMA_WIDEST<MB> / 16;
  constexpr int ELEMENT = F32 ? 4 : 2;
  constexpr int SHARE = MB * 128 / CLUSTER;  // features that this block brings to its cluster
  constexpr uint16_t MASK = CLUSTER == 1 ? 0 : (1 << CLUSTER) - 1;
  const int rank = CLUSTER == 1 ? 0 : cluster_rank();
  const int thread = threadIdx.x;
  const int chunk = thread % 8;
  const int row = thread / 8;
  const uint32_t place = MB * 16384 + row * 128 + ((chunk ^ (row % 8)) * 16);
  const int tiles = tables.ends[p.entries() - 1];
  TileWalk<CLUSTER> walk{tables.first, tables.rows, tables.width, tables.ends, rank};
  int turn = 0;
  for (int t = blockIdx.x / CLUSTER; t < tiles; t += gridDim.x / CLUSTER) {
    const Tile tile = walk.at(t);
    // Nobody reads the table of two tiles before any more.
    int32_t* rows = tables.in_rows[turn];
    turn ^= 1;
    const bool dense = tile.entry < p.dense;
    const WgmmaSide& side = p.side[dense ? 1 : 0];
    const int row_chunks = side.k / 8;
    for (int r = thread; r < wgmma_width(tile.rows); r += 128) {
      // Rows past the tile's last repeat it up to the instruction's width.
      int index = tile.first + max(0, min(r, tile.rows - 1));
      if (p.plan != nullptr && !dense) index = p.plan[p.experts + 1 + index] / p.in_divisor;
      rows[r] = index * row_chunks;
    }
    named_sync<128>(3);
    const int blocks = (side.k + WGMMA_K - 1) / WGMMA_K;
    for (int block = 0; block < blocks; block++) {
      const uint32_t full = shared_address(&tables.full[ring.stage]);
      barrier_wait(shared_address(&tables.empty[ring.stage]), ring.parity ^ 1);
      const uint32_t to = ring.address();
      if (thread == 0) {
        barrier_arrive_expect(full, MB * 16384);
        const CUtensorMap* map = dense ? &second : &first;
        const int part = dense ? 0 : tile.entry - p.dense;
        const int feature = tile.strip * MB * 128 + rank * SHARE;
        if constexpr (GATED) {
          tensor_copy(to + rank * SHARE * 128, map, full, MASK, block * WGMMA_K, 0, 0, feature / 16,
                      part);
        } else {
          tensor_copy(to + rank * SHARE * 128, map, full, MASK, block * WGMMA_K, feature, part);
        }
      }
      const bool valid = block * 8 + chunk < row_chunks;
      const char* in = static_cast<const char*>(side.in) +
                       (valid ? static_cast<int64_t>(block) * WGMMA_K * ELEMENT : 0);
#pragma unroll
      for (int i = 0; i < ROUNDS; i++) {
        if (i * 16 >= tile.rows) break;
        const char* source = in + static_cast<int64_t>(rows[i * 16 + row] + chunk) * (8 * ELEMENT);
        if constexpr (F32) {
          uint4 packed{};
          if (valid) {
            const float4 a = *reinterpret_cast<const float4*>(source);
            const float4 b = *reinterpret_cast<const float4*>(source + 16);
            packed = {pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y),
                      pack_bf16(b.z, b.w)};
          }
          store_shared(to + place + i * 2048, packed);
        } else {
          copy16(to + place + i * 2048, source, valid);
        }
      }
      if constexpr (F32) {
        fence_async_proxy();
        barrier_arrive(full);
      } else {
        barrier_arrive_copies(full);
      }
      ring.advance();
    }
  }
}

#endif

}  // namespace moela::cuda
