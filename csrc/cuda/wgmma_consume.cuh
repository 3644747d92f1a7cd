// The consumers of a wgmma product: two warpgroups, each with half of a tile's features in its
// accumulators, which multiply and then write.
#pragma once

#include "cuda/rows.cuh"
#include "cuda/wgmma_mma.cuh"
#include "cuda/wgmma_tables.cuh"

namespace moela::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ void group_sync(int group) { named_sync<128>(group + 1); }

// What a thread writes of a tile, and adds to it: 16 bytes of several rows, those of a warp side by
// side.
template <int MB, bool GATED>
struct WgmmaPieces {
  static constexpr int FEATURES = GATED ? MB * 32 : MB * 64;  // of a consumer
  static constexpr int ROWS = WGMMA_STORE_ROWS<MB>;
  const WgmmaSide& side;
  const int32_t* rows;
  int32_t count;  // of the tile's rows
  int32_t first;  // feature

  // The element of piece i (of `width` features) of the rows from `begin` on; -1: there is none.
  __device__ __forceinline__ int64_t at(int begin, int i, int width, int* row, int* feature) const {
    const int piece = i * 128 + threadIdx.x % 128;
    *row = piece / (FEATURES / width);
    *feature = piece % (FEATURES / width) * width;
    if (begin + *row >= count || first + *feature >= side.n) return -1;
    return static_cast<int64_t>(rows[begin + *row]) * side.pitch + first + *feature;
  }
};

// Features `feature` to `feature` + 3 of a row, rotated where they lie in the rotary part of a
// head.
__device__ __forceinline__ float4 wgmma_rotate(const Rotation& r, int64_t row, int feature,
                                               const float4& v) {
  const int at = feature % r.head_dim - r.offset;
  if (at < 0 || at >= r.dr) return v;
  const float* table = r.table + row * r.dr + at / 2;
  const float2 cosines = *reinterpret_cast<const float2*>(table);
  const float2 sines = *reinterpret_cast<const float2*>(table + r.dr / 2);
  const float2 a = rotate_pair(v.x, v.y, cosines.x, sines.x);
  const float2 b = rotate_pair(v.z, v.w, cosines.y, sines.y);
  return {a.x, a.y, b.x, b.y};
}
__device__ __forceinline__ float4 wgmma_add(const float4& a, const float4& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

// Writes a consumer's part of a tile, through `room` in shared memory: what a thread holds is
// scattered. The residuals of some rows are read while those before are written; `out` may be the
// same memory, since a thread reads what it alone will write.
template <int MB, bool GATED, bool EXTRA, int N>
__device__ __forceinline__ void wgmma_store(const WgmmaProblem& p, const Tile& tile,
                                            const int32_t* rows, float* room, int group,
                                            const float (&sums)[MB][N / 2]) {
  using Pieces = WgmmaPieces<MB, GATED>;
  constexpr int FEATURES = Pieces::FEATURES;
  constexpr int ROWS = Pieces::ROWS;
  constexpr int STRIDE = FEATURES + 4;  // so that a warp's stores meet no bank twice
  constexpr int COUNT = ROWS * FEATURES / 4 / 128;
  const WgmmaSide& side = p.side[tile.entry < p.dense ? 1 : 0];
  const Pieces pieces{side, rows, tile.rows, (tile.strip * 2 + group) * FEATURES};
  const int warp = threadIdx.x % 128 / 32;
  const int r = threadIdx.x % 32 / 4;
  const int q = threadIdx.x % 4;
  const bool adds = EXTRA && side.residual != nullptr;
  const bool adds_ahead = adds && !side.out_bf16;
  const bool rotates = EXTRA && side.rotation.table != nullptr;
  float4 next[COUNT];
  const auto read_residuals = [&](int begin) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      int row, feature;
      const int64_t at = pieces.at(begin, i, 4, &row, &feature);
      if (at >= 0) next[i] = *reinterpret_cast<const float4*>(side.residual + at);
    }
  };
#pragma unroll
  for (int i = 0; i < COUNT; i++) next[i] = {};
  group_sync(group);  // `rows` are there
  if (adds_ahead) read_residuals(0);
#pragma unroll
  for (int begin = 0; begin < N; begin += ROWS) {
    if (begin >= tile.rows) break;
#pragma unroll
    for (int jj = 0; jj < ROWS / 8; jj++) {
      if (begin + jj * 8 >= N) break;
      const int i = (begin / 8 + jj) * 4;
#pragma unroll
      for (int mb = 0; mb < MB; mb++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
          float* to = room + (jj * 8 + q * 2 + h) * STRIDE + r;
          const float one = sums[mb][i + h];
          const float other = sums[mb][i + 2 + h];
          if constexpr (GATED) {
            const float gate = side.up_first ? other : one;
            const float up = side.up_first ? one : other;
            to[mb * 32 + warp * 8] = __fdividef(gate, 1.0f + __expf(-gate)) * up;
          } else {
            to[mb * 64 + warp * 16] = one;
            to[mb * 64 + warp * 16 + 8] = other;
          }
        }
      }
    }
    group_sync(group);
    if (side.out_bf16) {
#pragma unroll
      for (int i = 0; i < COUNT / 2 + COUNT % 2; i++) {
        int row, feature;
        const int64_t at = pieces.at(begin, i, 8, &row, &feature);
        if (at < 0) continue;
        float4 a = *reinterpret_cast<const float4*>(room + row * STRIDE + feature);
        float4 b = *reinterpret_cast<const float4*>(room + row * STRIDE + feature + 4);
        if (rotates) {
          const int64_t to = rows[begin + row];
          a = wgmma_rotate(side.rotation, to, pieces.first + feature, a);
          b = wgmma_rotate(side.rotation, to, pieces.first + feature + 4, b);
        }
        if (adds) {
          a = wgmma_add(a, *reinterpret_cast<const float4*>(side.residual + at));
          b = wgmma_add(b, *reinterpret_cast<const float4*>(side.residual + at + 4));
        }
        *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(side.out) + at) = {
            pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y), pack_bf16(b.z, b.w)};
      }
    } else {
      float4 add[COUNT];
#pragma unroll
      for (int i = 0; i < COUNT; i++) add[i] = next[i];
      if (adds_ahead && begin + ROWS < N) read_residuals(begin + ROWS);
#pragma unroll
      for (int i = 0; i < COUNT; i++) {
        int row, feature;
        const int64_t at = pieces.at(begin, i, 4, &row, &feature);
        if (at < 0) continue;
        float4 v = *reinterpret_cast<const float4*>(room + row * STRIDE + feature);
        if (rotates) v = wgmma_rotate(side.rotation, rows[begin + row], pieces.first + feature, v);
        if (adds_ahead) v = wgmma_add(v, add[i]);
        *reinterpret_cast<float4*>(static_cast<float*>(side.out) + at) = v;
      }
    }
    group_sync(group);
  }
}

// A consumer's part of one tile whose rows fill N columns.
template <int MB, bool GATED, bool EXTRA, int CLUSTER, int N>
__device__ __forceinline__ void wgmma_tile(const WgmmaProblem& p, WgmmaTables& tables,
                                           WgmmaRing& ring, const Tile& tile, const int32_t* rows,
                                           float* room, int group) {
  if constexpr (N <= WGMMA_WIDEST<MB>) {
    // Written here, and not by the first instruction, so that no register lives longer than a tile.
    float sums[MB][N / 2];
#pragma unroll
    for (int mb = 0; mb < MB; mb++) {
#pragma unroll
      for (int i = 0; i < N / 2; i++) sums[mb][i] = 0;
    }
    const int k = p.side[tile.entry < p.dense ? 1 : 0].k;
    const int blocks = (k + WGMMA_K - 1) / WGMMA_K;
    // One thread of a warp tells each block of the cluster that a stage is free.
    const auto release = [&](uint32_t barrier) {
      if constexpr (CLUSTER == 1) {
        if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
      } else {
        if (threadIdx.x % 32 < CLUSTER) barrier_arrive_at(barrier, threadIdx.x % 32);
      }
    };
    uint32_t previous = 0;
    for (int block = 0; block < blocks; block++) {
      barrier_wait(shared_address(&tables.full[ring.stage]), ring.parity);
      fence_async_proxy();
      const uint64_t a = operand_descriptor(ring.address() + group * MB * 8192);
      const uint64_t b = operand_descriptor(ring.address() + MB * 16384);
      wgmma_begin();
#pragma unroll
      for (int step = 0; step < WGMMA_K / 16; step++) {
#pragma unroll
        for (int mb = 0; mb < MB; mb++) {
          Wgmma<N>::run(sums[mb], a + mb * 512 + step * 2, b + step * 2);
        }
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (block > 0) release(previous);
      previous = shared_address(&tables.empty[ring.stage]);
      ring.advance();
    }
    wgmma_wait<0>();
    release(previous);
    wgmma_store<MB, GATED, EXTRA, N>(p, tile, rows, room, group, sums);
  }
}

// Multiplies all tiles of this block: one of two warpgroups, each half of a tile's features.
template <int MB, bool GATED, bool EXTRA, int CLUSTER>
__device__ __forceinline__ void wgmma_consume(const WgmmaProblem& p, WgmmaTables& tables,
                                              WgmmaRing ring, float* room, int group) {
  const int rank = CLUSTER == 1 ? 0 : cluster_rank();
  const int tiles = tables.ends[p.entries() - 1];
  TileWalk<CLUSTER> walk{tables.first, tables.rows, tables.width, tables.ends, rank};
  int turn = 0;
  for (int t = blockIdx.x / CLUSTER; t < tiles; t += gridDim.x / CLUSTER) {
    const Tile tile = walk.at(t);
    int32_t* rows = tables.out_rows[group][turn];
    turn ^= 1;
    const bool planned = p.plan != nullptr && tile.entry >= p.dense;
    for (int i = threadIdx.x % 128; i < tile.rows; i += 128) {
      rows[i] = planned ? p.plan[p.experts + 1 + tile.first + i] : tile.first + i;
    }
    switch (__shfl_sync(~0u, wgmma_width(tile.rows), 0)) {
#define MOELA_WIDTH(N)                                                                  \
  case N:                                                                               \
    wgmma_tile<MB, GATED, EXTRA, CLUSTER, N>(p, tables, ring, tile, rows, room, group); \
    break;
      MOELA_WIDTH(16)
      MOELA_WIDTH(32)
      MOELA_WIDTH(48)
      MOELA_WIDTH(64)
      MOELA_WIDTH(80)
      MOELA_WIDTH(96)
      MOELA_WIDTH(112)
      MOELA_WIDTH(128)
      MOELA_WIDTH(144)
      MOELA_WIDTH(160)
      MOELA_WIDTH(176)
      MOELA_WIDTH(192)
      MOELA_WIDTH(208)
      MOELA_WIDTH(224)
      MOELA_WIDTH(240)
      MOELA_WIDTH(256)
#undef MOELA_WIDTH
    }
  }
}

#endif

}  // namespace moela::cuda
