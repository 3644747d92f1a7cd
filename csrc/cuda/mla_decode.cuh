// What the kernels of mla_decode take. out [R, H, r] = softmax(q_latent . cache rows [0, position])
// . their latents, see mla_decode.cu.
#pragma once

#include "cuda/launch.h"
#include "cuda/mla_decode_plan.h"
#include "cuda/ops.h"

namespace moela::cuda {

struct MlaDecodeArgs {
  Step step;
  int32_t layer;
  int32_t heads;
  int32_t r, dr;
  Tensor q;    // [R, H, r + dr], F32 or BF16
  Tensor out;  // [R, H, r], F32 or BF16
  MlaSplits splits;
  MlaSlots slots;
  char* scratch;
};

// Any dims and cache type, f32 arithmetic.
void mla_decode_generic(const Launch& at, const MlaDecodeArgs& args);
// Hopper, r = 512, dr = 64: tiles of 16 heads on mma.sync, a cluster of eight blocks a split.
void mla_decode_cluster(const Launch& at, const MlaDecodeArgs& args);

// The same bits for many rows: a block a split. False, and nothing is done, where scratch memory
// has no room for a slot a block.
bool mla_decode_rows(const Launch& at, const MlaDecodeArgs& args);
// The same for many heads: tiles of 64 on wgmma.
void mla_decode_wgmma(const Launch& at, const MlaDecodeArgs& args);

// mla_decode, with rows that may depend on their neighbours where `invariant` is false.
void mla_decode_split(const Launch& at, int32_t layer, int64_t heads, int64_t r, int64_t dr,
                      Tensor q_latent, Tensor out, bool invariant);

}  // namespace moela::cuda
