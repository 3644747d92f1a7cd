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
// A second matrix for all rows may go along, with input and output of its own: latents beside
// queries, the shared experts beside the chosen ones. Its tiles come first.
//
// EXTRA: what leaves may be rotated and have a residual added, which others do without, for the
// registers and the time that it takes.
// GATED: features come in pairs of a gate and an up matrix, eight and eight in turn, so that the
// two of a pair meet in one thread: out = silu(gate) * up.
#pragma once

#include "cuda/wgmma_consume.cuh"
#include "cuda/wgmma_produce.cuh"

namespace moela::cuda {

// Other architectures have no clusters, and never run this.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define MOELA_CLUSTER(blocks)
#else
#define MOELA_CLUSTER(blocks) __cluster_dims__(blocks, 1, 1)
#endif

template <int MB, bool GATED, bool EXTRA, bool F32, int CLUSTER>
__global__ MOELA_CLUSTER(CLUSTER)
    __launch_bounds__(WGMMA_THREADS,
                      1) void wgmma_product(const __grid_constant__ CUtensorMap map,
                                            const __grid_constant__ CUtensorMap second,
                                            const __grid_constant__ WgmmaProblem p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  MOELA_ALIGNED_DYNAMIC_SHARED(1024, char, shared);
  WgmmaTables& tables =
      *reinterpret_cast<WgmmaTables*>(shared + WGMMA_RING<MB> + 2 * WGMMA_STORE<MB>);
  if (threadIdx.x == 0) {
    tensor_map_prefetch(&map);
    if (p.dense) tensor_map_prefetch(&second);
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
  wgmma_schedule<CLUSTER>(p, tables);
  allow_next();
  const int stage_bytes = (MB * 16384 + tables.widest * 128 + 1023) / 1024 * 1024;
  const WgmmaRing ring{shared_address(shared), stage_bytes,
                       min(WGMMA_STAGES, WGMMA_RING<MB> / stage_bytes)};
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (group == 0) {
    registers_dec<WGMMA_PRODUCER_REGISTERS>();
    wgmma_produce<MB, GATED, F32, CLUSTER>(map, second, p, tables, ring);
  } else {
    registers_inc<WGMMA_CONSUMER_REGISTERS>();
    float* room = reinterpret_cast<float*>(shared + WGMMA_RING<MB> + (group - 1) * WGMMA_STORE<MB>);
    wgmma_consume<MB, GATED, EXTRA, CLUSTER>(p, tables, ring, room, group - 1);
  }
  // Its neighbours may still arrive at this block's barriers.
  if constexpr (CLUSTER > 1) cluster_sync();
#endif
}

#undef MOELA_CLUSTER

}  // namespace moela::cuda
