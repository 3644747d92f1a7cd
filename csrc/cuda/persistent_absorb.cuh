// Latent attention of persistent.cu for one row, what comes before it: queries into the latent
// space, and the rotated keys of queries. What the kernels of mla_absorb.cu and rotary.cu do, with
// the same sums in the same order. DeepSeek-V2, arXiv 2405.04434, section 2.1.2.
#pragma once

#include "cuda/mla_weight.cuh"
#include "cuda/persistent_entry.cuh"
#include "cuda/rows.cuh"

namespace moela::cuda::persistent {

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ Weight kv_b_of(const Arguments& a, const PersistentLayer& layer) {
  return {a.model.kv_b_dtype, 1, int64_t{a.model.heads} * (DN + DV), R, layer.kv_b.data, 0,
          layer.kv_b.scales,  0};
}

// Queries into the latent space, the row's rotated query keys, and its entry in the cache, which
// warps make that have nothing else to do.
template <int DTYPE>
__device__ __noinline__ void absorb(int layer_index) {
  Shared<DTYPE>& s = shared_memory<DTYPE>();
  const Arguments& a = s.a;
  const PersistentLayer& layer = s.layers[layer_index % LAYERS];
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4;
  const int t = lane % 4;
  const int units = a.model.heads * SLICES;
  const Weight kv_b = kv_b_of(a, layer);
  const uint32_t epoch = s.epoch + layer_index;
  if (s.makes_entry && thread >= ENTRY_THREAD) make_entry<DTYPE>(layer_index);
#pragma unroll 1
  for (int unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int head = unit / SLICES, slice = unit % SLICES;
    const bool mine = warp < 4;
    uint32_t weights[2][4][4];
    if (mine) {
      const int64_t first = int64_t{head} * (DN + DV) + warp * (DN / 4) + 4 * t;
      absorb_fragments<KV_B_TYPE<DTYPE>>(kv_b, first, slice * (R / SLICES) + 8 * g, weights);
    }
    float (*partial)[R / SLICES + 4] = reinterpret_cast<float (*)[R / SLICES + 4]>(s.scores);
    const uint64_t* q = a.to.q + head * (DN + DR);
    uint64_t* out = a.to.q_latent + head * WIDTH;
    if (mine) {
      uint2 x[2] = {};
      if (g == 0) {
        float2 v[4];
        receive(v, epoch,
                [&](int i) { return q + warp * (DN / 4) + 4 * t + i / 2 * 16 + i % 2 * 2; });
        x[0] = {bf16_pair(v[0].x, v[0].y), bf16_pair(v[1].x, v[1].y)};
        x[1] = {bf16_pair(v[2].x, v[2].y), bf16_pair(v[3].x, v[3].y)};
      }
      float sums[4][4] = {};
#pragma unroll
      for (int step = 0; step < 2; step++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const uint32_t* w = weights[step][i];
          mma_bf16(sums[i], w[0], w[1], w[2], w[3], x[step].x, x[step].y);
        }
      }
      if (t == 0) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
          *reinterpret_cast<float4*>(&partial[warp][8 * g + 4 * j]) = {
              sums[2 * j][0], sums[2 * j][2], sums[2 * j + 1][0], sums[2 * j + 1][2]};
        }
      }
    }
    // A head's rotary part, by the block with its first slice.
    if (slice == 0 && thread >= 128 && thread < 128 + DR / 2) {
      const int i = thread - 128;
      float2 pair[1];
      receive(pair, epoch, [&](int) { return q + DN + 2 * i; });
      const float2 y = rotate_pair(pair[0].x, pair[0].y, s.rope[i], s.rope[DR / 2 + i]);
      send(out + R + 2 * i, __fmul_rn(a.model.scale, y.x), epoch);
      send(out + R + 2 * i + 1, __fmul_rn(a.model.scale, y.y), epoch);
    }
    sync();
    if (thread < R / SLICES) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < 4; i++) sum = __fadd_rn(sum, partial[i][thread]);
      send(out + slice * (R / SLICES) + thread, __fmul_rn(sum, a.model.scale), epoch);
    }
    sync();
  }
  if (static_cast<int>(blockIdx.x) >= units) sync();  // The entry is there.
  if (blockIdx.x == gridDim.x - 1) {
    const Place& at = s.place;
    const int slot = at.position % MOELA_PAGE_TOKENS;
    const int64_t page = __ldg(a.step.pages + at.page + at.position / MOELA_PAGE_TOKENS);
    put_entry<DTYPE>(s.pool.at(page, layer_index) + slot * s.pool.row_bytes,
                     s.pool.scales_at(page, layer_index) + 2 * slot);
    sync();
  }
}

static_assert(THREADS == R, "a thread a latent");

#endif  // __CUDA_ARCH__ >= 900

}  // namespace moela::cuda::persistent
