// What comes after attention in persistent.cu: its parts are merged, and results leave the latent
// space, with the sums of mla_decode_cluster.cu and mla_expand.cu in the same order.
#pragma once

#include "cuda/persistent_absorb.cuh"
#include "cuda/persistent_attend.cuh"

namespace moela::cuda::persistent {

// Splits from which on their merging is a phase of its own.
constexpr int MANY_SPLITS = 3;

#if __CUDA_ARCH__ >= 900
// Of a split, for one head and column: the parts' sums merged, relative to 2^max.
struct Result {
  float max, sum, o;
};
// `states` of the split's parts: maxima and sums.
__device__ __forceinline__ Result merge_split(const Arguments& a, const Place& at, uint32_t epoch,
                                              int split, int head, int column,
                                              const float2 (&state)[MLA_SHARES]) {
  const int parts = keys_of(at, split * MLA_SHARES).shares;
  const int64_t first = int64_t{split} * MLA_SHARES * HEADS + head;
  float o[MLA_SHARES];
  receive(o, epoch,
          [&](int i) { return a.to.parts + (first + (i < parts ? i : 0) * HEADS) * R + column; });
  // As add_split() of one part after another.
  Result merged = {-INFINITY, 0, 0};
  float mine[MLA_SHARES], other[MLA_SHARES];
#pragma unroll
  for (int i = 0; i < MLA_SHARES; i++) {
    if (i >= parts) continue;
    const float most = fmaxf(merged.max, state[i].x);
    mine[i] = power2(merged.max - most);
    other[i] = power2(state[i].x - most);
    merged.max = most;
  }
#pragma unroll
  for (int i = 0; i < MLA_SHARES; i++) {
    if (i >= parts) continue;
    merged.sum = fmaf(state[i].y, other[i], merged.sum * mine[i]);
    merged.o = fmaf(o[i], other[i], merged.o * mine[i]);
  }
  return merged;
}
__device__ __forceinline__ void add_split(Result& to, const Result& split) {
  const float most = fmaxf(to.max, split.max);
  const float mine = power2(to.max - most), other = power2(split.max - most);
  to.max = most;
  to.sum = fmaf(split.sum, other, to.sum * mine);
  to.o = fmaf(split.o, other, to.o * mine);
}

// Merges many splits: 64 columns of a head a block, eight splits at a time.
template <int DTYPE>
__device__ __noinline__ void merge_many(int layer) {
  Shared<DTYPE>& s = shared_memory<DTYPE>();
  const Arguments& a = s.a;
  const Place& at = s.place;
  Result(*room)[R / SLICES] = reinterpret_cast<Result(*)[R / SLICES]>(s.scores);
  const int lane = threadIdx.x / (R / SLICES), column = threadIdx.x % (R / SLICES);
  for (int unit = blockIdx.x; unit < a.model.heads * SLICES; unit += gridDim.x) {
    const int head = unit / SLICES, at_column = unit % SLICES * (R / SLICES) + column;
    Result total = {-INFINITY, 0, 0};
    for (int first = 0; first < at.splits; first += SLICES) {
      if (first + lane < at.splits) {
        const int parts = keys_of(at, (first + lane) * MLA_SHARES).shares;
        float2 state[MLA_SHARES];
        receive(state, s.epoch + layer, [&](int i) {
          const int64_t part = int64_t{first + lane} * MLA_SHARES + (i < parts ? i : 0);
          return a.to.states + (part * HEADS + head) * 2;
        });
        room[lane][column] =
            merge_split(a, at, s.epoch + layer, first + lane, head, at_column, state);
      }
      sync();
      if (lane == 0) {
        for (int i = 0; i < SLICES && first + i < at.splits; i++) add_split(total, room[i][column]);
      }
      sync();
    }
    if (lane == 0) {
      send(a.to.merged + head * R + at_column, total.o * (1 / total.sum), s.epoch + layer);
    }
  }
}
static_assert(SLICES * (R / SLICES) == THREADS, "");

template <int KV_B>
__device__ __forceinline__ void expand_weights(const Weight& w, int head, int slice,
                                               uint4 (&out)[4][2]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int64_t first = int64_t(head) * (DN + DV) + DN + slice * STREAM_TILE + g;
#pragma unroll
  for (int step = 0; step < 4; step++) {
#pragma unroll
    for (int j = 0; j < 2; j++) {
      out[step][j] = weight_eight<KV_B>(w, first + 8 * j, warp * (R / 4) + 32 * step + 8 * t);
    }
  }
}

// Results out of the latent space: 16 of a head's 128 a block.
template <int DTYPE>
__device__ __noinline__ void expand(int layer_index) {
  Shared<DTYPE>& s = shared_memory<DTYPE>();
  const Arguments& a = s.a;
  const Place& at = s.place;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4;
  const int t = lane % 4;
  const Weight kv_b = kv_b_of(a, s.layers[layer_index % LAYERS]);
  float* latent = &s.scores[0][0][0];  // [R]
  float (*partial)[STREAM_TILE] = reinterpret_cast<float (*)[STREAM_TILE]>(latent + R);
  const int units = a.model.heads * SLICES;
  const uint32_t epoch = s.epoch + layer_index;
#pragma unroll 1
  for (int unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int head = unit / SLICES, slice = unit % SLICES;
    const bool mine = warp < 4;
    uint4 weights[4][2];
    if (mine) {
      expand_weights<KV_B_TYPE<DTYPE>>(kv_b, head, slice, weights);
    }
    if (at.splits >= MANY_SPLITS) {
      float merged[1];
      receive(merged, epoch, [&](int) { return a.to.merged + head * R + thread; });
      latent[thread] = merged[0];
    } else {
      // Few threads wait for the parts, and what they waited for is already of use.
      float2(*states)[MLA_SHARES] = reinterpret_cast<float2(*)[MLA_SHARES]>(partial);
      if (thread < at.splits * MLA_SHARES) {
        const int split = thread / MLA_SHARES, i = thread % MLA_SHARES;
        const int part = thread - (i < keys_of(at, split * MLA_SHARES).shares ? 0 : i);
        float2 state[1];
        receive(state, epoch, [&](int) { return a.to.states + (part * HEADS + head) * 2; });
        states[split][i] = state[0];
      }
      sync();
      if (threadIdx.x < 32) mark_other(layer_index, 7);
      Result total = {-INFINITY, 0, 0};
#pragma unroll 1
      for (int split = 0; split < at.splits; split++) {
        float2 state[MLA_SHARES];
#pragma unroll
        for (int i = 0; i < MLA_SHARES; i++) state[i] = states[split][i];
        add_split(total, merge_split(a, at, epoch, split, head, thread, state));
      }
      latent[thread] = total.o * (1 / total.sum);
    }
    sync();
    if (threadIdx.x < 32) mark_other(layer_index, 8);
    if (mine) {
      uint2 x[8] = {};
      if (g == 0) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
          const float4 v = *reinterpret_cast<const float4*>(latent + warp * (R / 4) + 8 * t +
                                                            i / 2 * 32 + i % 2 * 4);
          x[i] = {bf16_pair(v.x, v.y), bf16_pair(v.z, v.w)};
        }
      }
      float sums[4] = {};
#pragma unroll
      for (int step = 0; step < 4; step++) {
        const uint4 w = weights[step][0], w8 = weights[step][1];
        mma_bf16(sums, w.x, w8.x, w.y, w8.y, x[2 * step].x, x[2 * step].y);
        mma_bf16(sums, w.z, w8.z, w.w, w8.w, x[2 * step + 1].x, x[2 * step + 1].y);
      }
      if (t == 0) {
        partial[warp][g] = sums[0];
        partial[warp][g + 8] = sums[2];
      }
    }
    sync();
    if (thread < STREAM_TILE) {
      float sum = 0;
#pragma unroll
      for (int k = 0; k < 4; k++) sum = __fadd_rn(sum, partial[k][thread]);
      send(a.to.attended + head * DV + slice * STREAM_TILE + thread, sum, epoch);
    }
    sync();
  }
}
static_assert(SLICES * STREAM_TILE == DV, "");
#endif  // __CUDA_ARCH__ >= 900

}  // namespace moela::cuda::persistent
