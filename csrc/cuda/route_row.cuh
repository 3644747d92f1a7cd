// The gate of DeepSeekMoE for one row by one warp, in registers: see router.cu for the definition.
#pragma once

#include "cuda/launch.h"

namespace moela::cuda {

constexpr int ROUTE_MOST = 512;  // experts
constexpr int ROUTE_MOST_CHOSEN = 32;
constexpr int ROUTE_MOST_GROUPS = 32;

// Floats as integers in the same order; none is 0, which stands for "taken".
__device__ __forceinline__ uint32_t route_key(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);  // -0 ties with 0
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float route_value(uint32_t key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

// The largest of a warp's keys, the lowest index first (key j of a lane is lane + 32 j); takes it.
template <int J>
__device__ __forceinline__ int route_next(uint32_t (&keys)[J]) {
  uint32_t best = keys[0];
#pragma unroll
  for (int j = 1; j < J; j++) best = max(best, keys[j]);
  best = __reduce_max_sync(0xffffffff, best);
  int index = -1;
#pragma unroll
  for (int j = 0; j < J; j++) {
    const uint32_t who = __ballot_sync(0xffffffff, keys[j] == best);
    if (index < 0 && who) {
      index = 32 * j + __ffs(who) - 1;
      if (static_cast<int>(threadIdx.x % 32) == index % 32) keys[j] = 0;
    }
  }
  return index;
}

template <int J>
__device__ __forceinline__ void route_warp(const RouterShape& shape, const float* logits,
                                           const float* bias, int* chosen, float* weights) {
  const int lane = threadIdx.x % 32, n = static_cast<int>(shape.experts);
  constexpr float INFINITE = __builtin_huge_valf();
  float scores[J];
  uint32_t keys[J];
#pragma unroll
  for (int j = 0; j < J; j++) scores[j] = lane + 32 * j < n ? logits[lane + 32 * j] : -INFINITE;
  if (shape.scoring == MOELA_SCORE_SIGMOID) {
#pragma unroll
    for (int j = 0; j < J; j++) scores[j] = 1 / (1 + expf(-scores[j]));
  } else {
    float largest = scores[0], sum = 0;
#pragma unroll
    for (int j = 1; j < J; j++) largest = fmaxf(largest, scores[j]);
    largest = route_value(__reduce_max_sync(0xffffffff, route_key(largest)));
#pragma unroll
    for (int j = 0; j < J; j++) sum += scores[j] = expf(scores[j] - largest);
#pragma unroll
    for (int s = 16; s > 0; s /= 2) sum += __shfl_xor_sync(0xffffffff, sum, s);
#pragma unroll
    for (int j = 0; j < J; j++) scores[j] /= sum;
  }
#pragma unroll
  for (int j = 0; j < J; j++) {
    const int e = lane + 32 * j;
    const float by = bias && e < n ? scores[j] + bias[e] : scores[j];
    keys[j] = e >= n ? 0 : route_key(isnan(by) ? -INFINITE : by);
  }
  if (shape.group_score != MOELA_GROUP_NONE) {
    const int groups = static_cast<int>(shape.n_group), size = n / groups;
    const bool by_max = shape.group_score == MOELA_GROUP_MAX;
    uint32_t group_key[1] = {0};
    for (int g = 0; g < groups; g++) {
      uint32_t members[J];
#pragma unroll
      for (int j = 0; j < J; j++) {
        const int e = lane + 32 * j;
        members[j] = e >= g * size && e < (g + 1) * size ? keys[j] : 0;
      }
      uint32_t best = 0;
#pragma unroll
      for (int j = 0; j < J; j++) best = max(best, members[j]);
      float score = route_value(__reduce_max_sync(0xffffffff, best));
      if (!by_max && size > 1) {
        route_next<J>(members);
        best = 0;
#pragma unroll
        for (int j = 0; j < J; j++) best = max(best, members[j]);
        score += route_value(__reduce_max_sync(0xffffffff, best));
        if (isnan(score)) score = -INFINITE;
      }
      if (lane == g) group_key[0] = route_key(score);
    }
    uint32_t kept = 0;
    for (int i = 0; i < shape.topk_group; i++) kept |= 1u << route_next<1>(group_key);
#pragma unroll
    for (int j = 0; j < J; j++) {
      const int e = lane + 32 * j;
      if (e < n && !(kept >> e / size & 1)) {
        keys[j] = route_key(by_max ? 0 : -INFINITE);
        if (by_max) scores[j] = 0;
      }
    }
  }
  const int top_k = static_cast<int>(shape.top_k);
  float sum = 0, weight = 0;
  int expert = 0;
  for (int k = 0; k < top_k; k++) {
    const int index = route_next<J>(keys);
    float score = 0;
#pragma unroll
    for (int j = 0; j < J; j++) {
      if (index / 32 == j) score = scores[j];
    }
    score = __shfl_sync(0xffffffff, score, index % 32);
    sum += score;
    if (lane == k) {
      weight = score;
      expert = index;
    }
  }
  if (lane < top_k) {
    const float divisor = shape.normalise ? sum + 1e-20f : 1;
    chosen[lane] = expert;
    weights[lane] = weight / divisor * shape.factor;
  }
  __syncwarp();
}

// Apart, so that the many registers it takes are not those of the kernel around it.
static __device__ __noinline__ void route_many(const RouterShape& shape, const float* logits,
                                               const float* bias, int* chosen, float* weights) {
  route_warp<ROUTE_MOST / 32>(shape, logits, bias, chosen, weights);
}

// By one whole warp; `chosen` and `weights` [top_k] may be shared memory.
__device__ __forceinline__ void route_row(const RouterShape& shape, const float* logits,
                                          const float* bias, int* chosen, float* weights) {
  if (shape.experts <= 64)
    route_warp<2>(shape, logits, bias, chosen, weights);
  else
    route_many(shape, logits, bias, chosen, weights);
}

}  // namespace moela::cuda
