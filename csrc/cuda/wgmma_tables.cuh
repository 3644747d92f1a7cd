// What a block of the wgmma products knows: the problem, the schedule of its tiles and its barriers
// in shared memory, and the ring of stages through which operands pass.
#pragma once

#include <cuda_bf16.h>

#include "cuda/launch.h"
#include "cuda/tma.cuh"
#include "cuda/wgmma.h"
#include "cuda/wgmma_schedule.h"

namespace moela::cuda {

constexpr int WGMMA_K = 64;  // of a stage: 128 bytes a row
constexpr int WGMMA_THREADS = 384;
constexpr int WGMMA_EXPERTS = 256;
constexpr int WGMMA_STAGES = 8;  // at most; as many as fit the launch's widest tile
template <int MB>
constexpr int WGMMA_STORE_ROWS = 32 / MB;  // rows that a consumer lays out at a time

constexpr int WGMMA_PRODUCER_REGISTERS = 40;
constexpr int WGMMA_CONSUMER_REGISTERS = 232;

template <int MB>
constexpr int WGMMA_WIDEST = MB == 1 ? 256 : 192;  // rows of a tile at most

// One of the two matrices of a launch, or a matrix an expert.
struct WgmmaSide {
  const void* in;
  void* out;
  const float* residual;
  int32_t k;
  int32_t n;       // features of `out`
  int32_t pitch;   // elements from one of its rows to the next
  int32_t strips;  // tiles of features
  int32_t out_bf16;
  int32_t up_first;  // GATED: the map's pairs are up, gate
  Rotation rotation;
};

struct WgmmaProblem {
  const Counts* counts;
  const int32_t* plan;  // or NULL: rows through part 0
  int32_t experts;      // 1 without a plan
  int32_t top_k;
  int32_t in_divisor;  // slot / in_divisor is its row of `in`
  int32_t dense;       // 1: the second matrix takes all rows, as if it were an expert before all
  int32_t widest;      // rows of a tile at most
  int32_t dense_widest;
  WgmmaSide side[2];  // of the experts, or of the only matrix; of the second

  __host__ __device__ int entries() const { return dense + experts; }
};

struct WgmmaTables {
  uint64_t full[WGMMA_STAGES];
  uint64_t empty[WGMMA_STAGES];
  // Of the second matrix, where there is one, and of each expert:
  int32_t first[WGMMA_EXPERTS + 1];  // index of its first projected slot, or the first row
  int32_t rows[WGMMA_EXPERTS + 1];
  int32_t width[WGMMA_EXPERTS + 1];
  int32_t ends[WGMMA_EXPERTS + 1];  // tiles up to here
  int32_t widest;
  int32_t out_rows[2][2][256];  // of a consumer's tile; two tiles in turn
  int32_t in_rows[2][256];      // where the producers' tile has its rows, in 8 elements
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

// cut_matrix() by a warp, a lane for each number of tiles.
__device__ __forceinline__ RowTiles cut_matrix_by_warp(int rows, int widest, int cluster,
                                                       int strips, int processors) {
  const int lane = threadIdx.x % 32;
  const TimedCut mine = time_cut(rows, widest, cluster, strips, processors, lane % CUTS);
  // The shortest, then the fewest tiles.
  const uint32_t order = static_cast<uint32_t>(min(mine.time, 0x3ffffff)) * 32 + lane;
  const int best = ~__reduce_max_sync(~0u, ~order) % 32;
  return {__shfl_sync(~0u, mine.cut.count, best), __shfl_sync(~0u, mine.cut.width, best)};
}

// The schedule of one matrix or two; all threads.
template <int CLUSTER>
__device__ __forceinline__ void wgmma_schedule_matrix(const WgmmaProblem& p, WgmmaTables& tables) {
  if (threadIdx.x < 32) {
    const int begin = p.counts->n_absorbed;
    const int rows = p.counts->n_rows - begin;
    const int strips = p.side[0].strips + (p.dense ? p.side[1].strips : 0);
    RowTiles cut{0, 16};
    if (rows > 0) cut = cut_matrix_by_warp(rows, p.widest, CLUSTER, strips, gridDim.x);
    const int entry = threadIdx.x;
    if (entry < p.entries()) {
      tables.first[entry] = begin;
      tables.rows[entry] = rows;
      tables.width[entry] = cut.width;
      tables.ends[entry] = cut.count * (entry < p.dense ? p.side[1].strips : strips);
    }
    if (threadIdx.x == 0) tables.widest = wgmma_width(cut.width);
  }
  __syncthreads();
}

// Fills the tables of the schedule; all threads.
template <int CLUSTER>
__device__ __forceinline__ void wgmma_schedule(const WgmmaProblem& p, WgmmaTables& tables) {
  if (p.plan == nullptr) return wgmma_schedule_matrix<CLUSTER>(p, tables);
  const int begin = p.counts->n_absorbed;
  const int entries = p.entries();
  for (int entry = threadIdx.x; entry < entries; entry += WGMMA_THREADS) {
    const bool dense = entry < p.dense;
    int first = begin, last = p.counts->n_rows;
    if (!dense) {
      const int e = entry - p.dense;
      last = p.plan[e + 1];
      first = first_slot(p.plan + p.experts + 1, p.plan[e], last, begin, p.top_k);
    }
    const RowTiles cut = cut_expert(last - first, dense ? p.dense_widest : p.widest, CLUSTER);
    tables.first[entry] = first;
    tables.rows[entry] = last - first;
    tables.width[entry] = cut.width;
    tables.ends[entry] = cut.count * p.side[dense ? 1 : 0].strips;
    if (cut.count > 0) atomicMax(&tables.widest, wgmma_width(cut.width));
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    int before = 0;
    for (int base = 0; base < entries; base += 32) {
      const int e = base + threadIdx.x;
      int sum = e < entries ? tables.ends[e] : 0;
      for (int distance = 1; distance < 32; distance *= 2) {
        const int other = __shfl_up_sync(~0u, sum, distance);
        if (static_cast<int>(threadIdx.x) >= distance) sum += other;
      }
      sum += before;
      if (e < entries) tables.ends[e] = sum;
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

#endif

}  // namespace moela::cuda
