// One kernel for the grouped products of the projected rows:
//
//   out[row of t, n] = sum over k of in[row of t, k] weight[expert of t, n, k]
//
// Weights are the instruction's first operand, MB times 64 features a consumer warpgroup, and rows
// its second, 16 to WIDEST of them: an expert's few rows waste nothing, and every width sums an
// element in the same order. Blocks stay and walk over the tiles of wgmma_schedule.h. In a block
// one warpgroup brings operands into a ring of stages of 64 of k (weights by the copy engine, rows
// gathered 16 bytes a thread), two multiply.
//
// GATED: features come in pairs of a gate and an up matrix, eight and eight in turn, so that the
// two of a pair meet in one thread: out = silu(gate) * up.
#pragma once

#include <cuda_bf16.h>

#include "cuda/launch.h"
#include "cuda/tma.cuh"
#include "cuda/wgmma_mma.cuh"
#include "cuda/wgmma_schedule.h"

namespace moela::cuda {

constexpr int WGMMA_K = 64;  // of a stage: 128 bytes a row
constexpr int WGMMA_THREADS = 384;
constexpr int WGMMA_EXPERTS = 256;
constexpr int WGMMA_STAGES = 8;          // at most; as many as fit the launch's widest tile
template <int MB>
constexpr int WGMMA_STORE_ROWS = 32 / MB;  // rows that a consumer lays out at a time
constexpr int WGMMA_PRODUCER_REGISTERS = 40;
constexpr int WGMMA_CONSUMER_REGISTERS = 232;

template <int MB>
constexpr int WGMMA_WIDEST = MB == 1 ? 256 : 192;

struct WgmmaProblem {
  const Counts* counts;
  const int32_t* plan;  // or NULL: rows through part 0
  int32_t experts;      // 1 without a plan
  int32_t top_k;
  int32_t in_divisor;   // slot / in_divisor is its row of `in`
  int32_t n;            // features of `out`
  int32_t k;
  int32_t strips;       // tiles of features
  int32_t up_first;     // GATED: the map's pairs are up, gate
  int32_t out_bf16;
  const void* in;
  const float* residual;
  void* out;
};

struct WgmmaTables {
  uint64_t full[WGMMA_STAGES];
  uint64_t empty[WGMMA_STAGES];
  int32_t first[WGMMA_EXPERTS];  // index of an expert's first projected slot, or the first row
  int32_t rows[WGMMA_EXPERTS];
  int32_t width[WGMMA_EXPERTS];
  int32_t ends[WGMMA_EXPERTS];  // tiles of this expert and those before it
  int32_t widest;
  int32_t out_rows[2][2][256];  // of a consumer's tile; two tiles in turn
};

// Shared memory: stages, where consumers lay out their results, the tables.
constexpr int WGMMA_SHARED = 227 * 1024;
template <int MB>
constexpr int WGMMA_STORE = WGMMA_STORE_ROWS<MB> * (64 * MB + 4) * 4;  // of a consumer
template <int MB>
constexpr int WGMMA_RING =
    (WGMMA_SHARED - 2 * WGMMA_STORE<MB> - static_cast<int>(sizeof(WgmmaTables))) / 1024 * 1024;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// The columns of the instruction that takes so many rows.
__device__ __forceinline__ int wgmma_width(int rows) {
  return rows <= 16 ? 16 : (rows + 15) / 16 * 16;
}

// Fills the tables of the schedule; all threads.
template <int WIDEST, int CLUSTER>
__device__ __forceinline__ void wgmma_schedule(const WgmmaProblem& p, WgmmaTables& tables) {
  const int begin = p.counts->n_absorbed;
  const int end = p.counts->n_rows;
  for (int e = threadIdx.x; e < p.experts; e += WGMMA_THREADS) {
    RowTiles cut;
    int first = begin;
    int rows = end - begin;
    if (p.plan != nullptr) {
      const int last = p.plan[e + 1];
      first = first_slot(p.plan + p.experts + 1, p.plan[e], last, begin, p.top_k);
      rows = last - first;
      cut = cut_expert(rows, WIDEST, CLUSTER);
    } else {
      cut = cut_matrix(rows, WIDEST, CLUSTER, p.strips, gridDim.x);
    }
    tables.first[e] = first;
    tables.rows[e] = rows;
    tables.width[e] = cut.width;
    tables.ends[e] = cut.count * p.strips;
    if (cut.count > 0) atomicMax(&tables.widest, wgmma_width(cut.width));
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    int before = 0;
    for (int base = 0; base < p.experts; base += 32) {
      const int e = base + threadIdx.x;
      int sum = e < p.experts ? tables.ends[e] : 0;
      for (int distance = 1; distance < 32; distance *= 2) {
        const int other = __shfl_up_sync(~0u, sum, distance);
        if (static_cast<int>(threadIdx.x) >= distance) sum += other;
      }
      sum += before;
      if (e < p.experts) tables.ends[e] = sum;
      before = __shfl_sync(~0u, sum, 31);
    }
  }
  __syncthreads();
}

// Stages in turn, and the parity of the phase that each is in.
struct WgmmaRing {
  uint32_t base;
  int32_t stage_bytes;
  int32_t stages;
  int32_t stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ uint32_t address() const { return base + stage * stage_bytes; }
  __device__ __forceinline__ void advance() {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Brings the operands of all tiles of this block, with 128 threads.
template <int MB, bool GATED, bool F32, int CLUSTER>
__device__ __forceinline__ void wgmma_produce(const CUtensorMap& map, const WgmmaProblem& p,
                                              WgmmaTables& tables, WgmmaRing ring) {
  constexpr int ROUNDS = WGMMA_WIDEST<MB> / 16;
  constexpr int ELEMENT = F32 ? 4 : 2;
  constexpr int SHARE = MB * 128 / CLUSTER;  // features that this block brings to its cluster
  constexpr uint16_t MASK = CLUSTER == 1 ? 0 : (1 << CLUSTER) - 1;
  const int rank = CLUSTER == 1 ? 0 : cluster_rank();
  const int thread = threadIdx.x;
  const int chunk = thread % 8;
  const int row = thread / 8;
  const uint32_t place = MB * 16384 + row * 128 + ((chunk ^ (row % 8)) * 16);
  const int blocks = (p.k + WGMMA_K - 1) / WGMMA_K;
  const int row_chunks = p.k / 8;
  const int32_t* slots = p.plan == nullptr ? nullptr : p.plan + p.experts + 1;
  const int tiles = tables.ends[p.experts - 1];
  TileWalk<CLUSTER> walk{tables.first, tables.rows, tables.width, tables.ends, rank};
  for (int t = blockIdx.x / CLUSTER; t < tiles; t += gridDim.x / CLUSTER) {
    const Tile tile = walk.at(t);
    int32_t from[ROUNDS];
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
      const int r = i * 16 + row;
      int index = tile.first + max(0, min(r, tile.rows - 1));
      if (slots != nullptr) index = slots[index] / p.in_divisor;
      from[i] = index * row_chunks + chunk;
    }
    for (int block = 0; block < blocks; block++) {
      const uint32_t full = shared_address(&tables.full[ring.stage]);
      barrier_wait(shared_address(&tables.empty[ring.stage]), ring.parity ^ 1);
      const uint32_t to = ring.address();
      if (thread == 0) {
        barrier_arrive_expect(full, MB * 16384);
        if constexpr (GATED) {
          tensor_copy(to + rank * SHARE * 128, &map, full, MASK, block * WGMMA_K, 0, 0,
                      (tile.strip * MB * 128 + rank * SHARE) / 16, tile.expert);
        } else {
          tensor_copy(to + rank * SHARE * 128, &map, full, MASK, block * WGMMA_K,
                      tile.strip * MB * 128 + rank * SHARE, tile.expert);
        }
      }
      const bool valid = block * 8 + chunk < row_chunks;
      const char* in = static_cast<const char*>(p.in) +
                       (valid ? static_cast<int64_t>(block) * WGMMA_K * ELEMENT : 0);
#pragma unroll
      for (int i = 0; i < ROUNDS; i++) {
        // Rows past the tile's last repeat it up to the instruction's width.
        if (i * 16 >= tile.rows) break;
        const char* source = in + static_cast<int64_t>(from[i]) * (8 * ELEMENT);
        if constexpr (F32) {
          uint4 packed{};
          if (valid) {
            const float4 a = *reinterpret_cast<const float4*>(source);
            const float4 b = *reinterpret_cast<const float4*>(source + 16);
            packed = {pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y),
                      pack_bf16(b.z, b.w)};
          }
          asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to + place + i * 2048),
                       "r"(packed.x), "r"(packed.y), "r"(packed.z), "r"(packed.w)
                       : "memory");
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

__device__ __forceinline__ void group_sync(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
}

// What a thread writes of a tile, and adds to it: 16 bytes of several rows, those of a warp side by
// side.
template <int MB, bool GATED>
struct WgmmaPieces {
  static constexpr int FEATURES = GATED ? MB * 32 : MB * 64;  // of a consumer
  static constexpr int ROWS = WGMMA_STORE_ROWS<MB>;
  const WgmmaProblem& p;
  const int32_t* rows;
  int32_t count;  // of the tile's rows
  int32_t first;  // feature

  // The element of piece i (of `width` features) of the rows from `begin` on; -1: there is none.
  __device__ __forceinline__ int64_t at(int begin, int i, int width, int* row, int* feature) const {
    const int piece = i * 128 + threadIdx.x % 128;
    *row = piece / (FEATURES / width);
    *feature = piece % (FEATURES / width) * width;
    if (begin + *row >= count || first + *feature >= p.n) return -1;
    return static_cast<int64_t>(rows[begin + *row]) * p.n + first + *feature;
  }
};

// Writes a consumer's part of a tile, through `room` in shared memory: what a thread holds is
// scattered. The residuals of some rows are read while those before are written; `out` may be the
// same memory, since a thread reads what it alone will write.
template <int MB, bool GATED, int N>
__device__ __forceinline__ void wgmma_store(const WgmmaProblem& p, const Tile& tile,
                                            const int32_t* rows, float* room, int group,
                                            const float (&sums)[MB][N / 2]) {
  using Pieces = WgmmaPieces<MB, GATED>;
  constexpr int FEATURES = Pieces::FEATURES;
  constexpr int ROWS = Pieces::ROWS;
  constexpr int STRIDE = FEATURES + 4;  // so that a warp's stores meet no bank twice
  constexpr int COUNT = ROWS * FEATURES / 4 / 128;
  const Pieces pieces{p, rows, tile.rows, (tile.strip * 2 + group) * FEATURES};
  const int warp = threadIdx.x % 128 / 32;
  const int r = threadIdx.x % 32 / 4;
  const int q = threadIdx.x % 4;
  const bool adds = !GATED && p.residual != nullptr && !p.out_bf16;
  float4 next[COUNT];
  const auto read_residuals = [&](int begin) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      int row, feature;
      const int64_t at = pieces.at(begin, i, 4, &row, &feature);
      if (at >= 0) next[i] = *reinterpret_cast<const float4*>(p.residual + at);
    }
  };
#pragma unroll
  for (int i = 0; i < COUNT; i++) next[i] = {};
  group_sync(group);  // `rows` are there
  if (adds) read_residuals(0);
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
            const float gate = p.up_first ? other : one;
            const float up = p.up_first ? one : other;
            to[mb * 32 + warp * 8] = __fdividef(gate, 1.0f + __expf(-gate)) * up;
          } else {
            to[mb * 64 + warp * 16] = one;
            to[mb * 64 + warp * 16 + 8] = other;
          }
        }
      }
    }
    group_sync(group);
    if (p.out_bf16) {
#pragma unroll
      for (int i = 0; i < COUNT / 2 + COUNT % 2; i++) {
        int row, feature;
        const int64_t at = pieces.at(begin, i, 8, &row, &feature);
        if (at < 0) continue;
        const float4 a = *reinterpret_cast<const float4*>(room + row * STRIDE + feature);
        const float4 b = *reinterpret_cast<const float4*>(room + row * STRIDE + feature + 4);
        float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
        if (!GATED && p.residual != nullptr) {
#pragma unroll
          for (int e = 0; e < 8; e++) v[e] += p.residual[at + e];
        }
        *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(p.out) + at) = {
            pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]),
            pack_bf16(v[6], v[7])};
      }
    } else {
      float4 add[COUNT];
#pragma unroll
      for (int i = 0; i < COUNT; i++) add[i] = next[i];
      if (adds && begin + ROWS < N) read_residuals(begin + ROWS);
#pragma unroll
      for (int i = 0; i < COUNT; i++) {
        int row, feature;
        const int64_t at = pieces.at(begin, i, 4, &row, &feature);
        if (at < 0) continue;
        float4 v = *reinterpret_cast<const float4*>(room + row * STRIDE + feature);
        if (adds) v = {v.x + add[i].x, v.y + add[i].y, v.z + add[i].z, v.w + add[i].w};
        *reinterpret_cast<float4*>(static_cast<float*>(p.out) + at) = v;
      }
    }
    group_sync(group);
  }
}

// A consumer's part of one tile whose rows fill N columns.
template <int MB, bool GATED, int CLUSTER, int N>
__device__ __forceinline__ void wgmma_tile(const WgmmaProblem& p, WgmmaTables& tables,
                                           WgmmaRing& ring, const Tile& tile,
                                           const int32_t* rows, float* room, int group) {
  if constexpr (N <= WGMMA_WIDEST<MB>) {
    // Written here, and not by the first instruction, so that no register lives longer than a tile.
    float sums[MB][N / 2];
#pragma unroll
    for (int mb = 0; mb < MB; mb++) {
#pragma unroll
      for (int i = 0; i < N / 2; i++) sums[mb][i] = 0;
    }
    const int blocks = (p.k + WGMMA_K - 1) / WGMMA_K;
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
    wgmma_store<MB, GATED, N>(p, tile, rows, room, group, sums);
  }
}

// Multiplies all tiles of this block: one of two warpgroups, each half of a tile's features.
template <int MB, bool GATED, int CLUSTER>
__device__ __forceinline__ void wgmma_consume(const WgmmaProblem& p, WgmmaTables& tables,
                                              WgmmaRing ring, float* room, int group) {
  const int rank = CLUSTER == 1 ? 0 : cluster_rank();
  const int32_t* slots = p.plan == nullptr ? nullptr : p.plan + p.experts + 1;
  const int tiles = tables.ends[p.experts - 1];
  TileWalk<CLUSTER> walk{tables.first, tables.rows, tables.width, tables.ends, rank};
  int turn = 0;
  for (int t = blockIdx.x / CLUSTER; t < tiles; t += gridDim.x / CLUSTER) {
    const Tile tile = walk.at(t);
    int32_t* rows = tables.out_rows[group][turn];
    turn ^= 1;
    for (int i = threadIdx.x % 128; i < tile.rows; i += 128) {
      rows[i] = slots == nullptr ? tile.first + i : slots[tile.first + i];
    }
    switch (__shfl_sync(~0u, wgmma_width(tile.rows), 0)) {
#define MOELA_WIDTH(N)                                            \
  case N:                                                         \
    wgmma_tile<MB, GATED, CLUSTER, N>(p, tables, ring, tile, rows, room, group); \
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

template <int MB, bool GATED, bool F32, int CLUSTER>
__global__ __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(WGMMA_THREADS, 1) void wgmma_product(
    const __grid_constant__ CUtensorMap map, const WgmmaProblem p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) char shared[];
  WgmmaTables& tables =
      *reinterpret_cast<WgmmaTables*>(shared + WGMMA_RING<MB> + 2 * WGMMA_STORE<MB>);
  if (threadIdx.x == 0) {
    tensor_map_prefetch(&map);
    tables.widest = 16;
    for (int s = 0; s < WGMMA_STAGES; s++) {
      barrier_init(shared_address(&tables.full[s]), 129);  // the producers, and the copy engine
      barrier_init(shared_address(&tables.empty[s]), 8 * CLUSTER);  // the consumers' warps
    }
    barrier_init_fence();
  }
  __syncthreads();
  if constexpr (CLUSTER > 1) cluster_sync();
  wait_for_previous();
  wgmma_schedule<WGMMA_WIDEST<MB>, CLUSTER>(p, tables);
  allow_next();
  const int stage_bytes = (MB * 16384 + tables.widest * 128 + 1023) / 1024 * 1024;
  const WgmmaRing ring{shared_address(shared), stage_bytes,
                       min(WGMMA_STAGES, WGMMA_RING<MB> / stage_bytes)};
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(WGMMA_PRODUCER_REGISTERS));
    wgmma_produce<MB, GATED, F32, CLUSTER>(map, p, tables, ring);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(WGMMA_CONSUMER_REGISTERS));
    float* room = reinterpret_cast<float*>(shared + WGMMA_RING<MB> + (group - 1) * WGMMA_STORE<MB>);
    wgmma_consume<MB, GATED, CLUSTER>(p, tables, ring, room, group - 1);
  }
  // Its neighbours may still arrive at this block's barriers.
  if constexpr (CLUSTER > 1) cluster_sync();
#endif
}

}  // namespace moela::cuda
