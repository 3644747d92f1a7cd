// What the kernels of mla_prefill share: their passes, and how tiles go to blocks.
#pragma once

#include "cuda/launch.h"
#include "cuda/mla_prefill_plan.h"

namespace moela::cuda {

// A pass: heads [head, head + heads) and key blocks [block, block + blocks).
struct MlaPrefillPass {
  MlaPrefillShape shape;
  int32_t layer;
  int32_t head, heads;
  int32_t block, blocks;
  bool first;  // of the operation: makes the tables
  float scale;
  MlaPrefillTables* tables;
  char* latents;  // of the window: see mla_prefill_gather.cu
  char* rotary;
  char* weights;
  char* keys;
  float* state;  // [rows, heads, mla_prefill_state]
};

// Fills tables, latents, rotary and, on the fast path, weights.
void mla_prefill_gather(const Launch& at, const MlaPrefillPass& pass, bool fast,
                        const Weight& kv_b);
// The fast path: 128 + 64 / 128, wgmma.
void mla_prefill_project_sm90(const Launch& at, const MlaPrefillPass& pass);
void mla_prefill_attend_sm90(const Launch& at, const MlaPrefillPass& pass, Tensor q, Tensor out);
// Any shape, f32 arithmetic.
void mla_prefill_project(const Launch& at, const MlaPrefillPass& pass, const Weight& kv_b);
void mla_prefill_attend(const Launch& at, const MlaPrefillPass& pass, Tensor q, Tensor out);

#ifdef __CUDACC__
// The i-th of a block's share of n items that are sorted by size: rows of the grid, every other one
// backwards, so that shares are nearly equal. -1 where that row has no item for this block, -2 when
// there are no more.
__device__ __forceinline__ int mla_prefill_share(int i, int n) {
  const int blocks = gridDim.x;
  if (i * blocks >= n) return -2;
  const int item = i * blocks + ((i & 1) ? blocks - 1 - blockIdx.x : blockIdx.x);
  return item < n ? item : -1;
}
#endif

}  // namespace moela::cuda
