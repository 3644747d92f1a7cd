// The gate of DeepSeekMoE for one row by one warp: see router.cu for the definition.
#pragma once

#include "cuda/launch.h"

namespace moela::cuda {

constexpr int ROUTE_MOST = 512;  // experts

struct RouteRoom {
  float scores[ROUTE_MOST];
  float selection[ROUTE_MOST];
  float groups[32];
};

// The largest of values[n] that is not in `taken` (bit j: element lane + 32 j of this lane), the
// lowest index first; marks it as taken.
__device__ __forceinline__ int route_next(const float* values, int n, uint32_t& taken) {
  const int lane = threadIdx.x % 32;
  float best = 0;
  int index = ROUTE_MOST;
  for (int i = lane, j = 0; i < n; i += 32, j++) {
    if (!(taken >> j & 1) && (index == ROUTE_MOST || values[i] > best)) {
      best = values[i];
      index = i;
    }
  }
#pragma unroll
  for (int s = 16; s > 0; s /= 2) {
    const float other = __shfl_xor_sync(0xffffffff, best, s);
    const int at = __shfl_xor_sync(0xffffffff, index, s);
    if (at != ROUTE_MOST &&
        (index == ROUTE_MOST || other > best || (other == best && at < index))) {
      best = other;
      index = at;
    }
  }
  if (index % 32 == lane) taken |= 1u << index / 32;
  return index;
}

// By one whole warp. `chosen` and `weights` [top_k] may be shared memory.
__device__ __forceinline__ void route_row(const RouterShape& shape, const float* logits,
                                          const float* bias, RouteRoom& room, int* chosen,
                                          float* weights) {
  const int lane = threadIdx.x % 32, n = static_cast<int>(shape.experts);
  constexpr float INFINITE = __builtin_huge_valf();
  if (shape.scoring == MOELA_SCORE_SIGMOID) {
    for (int e = lane; e < n; e += 32) room.scores[e] = 1 / (1 + expf(-logits[e]));
  } else {
    float largest = -INFINITE, sum = 0;
    for (int e = lane; e < n; e += 32) largest = fmaxf(largest, logits[e]);
#pragma unroll
    for (int s = 16; s > 0; s /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, s));
    }
    for (int e = lane; e < n; e += 32) sum += room.scores[e] = expf(logits[e] - largest);
#pragma unroll
    for (int s = 16; s > 0; s /= 2) sum += __shfl_xor_sync(0xffffffff, sum, s);
    for (int e = lane; e < n; e += 32) room.scores[e] /= sum;
  }
  for (int e = lane; e < n; e += 32) {
    const float by = bias ? room.scores[e] + bias[e] : room.scores[e];
    room.selection[e] = isnan(by) ? -INFINITE : by;
  }
  __syncwarp();
  if (shape.group_score != MOELA_GROUP_NONE) {
    const int groups = static_cast<int>(shape.n_group), size = n / groups;
    if (lane < groups) {
      float first = -INFINITE, second = -INFINITE;
      for (int e = lane * size; e < (lane + 1) * size; e++) {
        const float value = room.selection[e];
        if (value > first) {
          second = first;
          first = value;
        } else {
          second = fmaxf(second, value);
        }
      }
      const bool one = shape.group_score == MOELA_GROUP_MAX || size < 2;
      const float score = one ? first : first + second;
      room.groups[lane] = isnan(score) ? -INFINITE : score;
    }
    __syncwarp();
    uint32_t taken = 0;
    for (int i = 0; i < groups; i++) {
      const int group = route_next(room.groups, groups, taken);
      if (i < shape.topk_group) continue;
      const bool by_max = shape.group_score == MOELA_GROUP_MAX;
      for (int e = group * size + lane; e < (group + 1) * size; e += 32) {
        room.selection[e] = by_max ? 0 : -INFINITE;
        if (by_max) room.scores[e] = 0;
      }
    }
    __syncwarp();
  }
  uint32_t taken = 0;
  float sum = 0;
  const int top_k = static_cast<int>(shape.top_k);
  for (int k = 0; k < top_k; k++) {
    const int expert = route_next(room.selection, n, taken);
    sum += room.scores[expert];
    if (lane == 0) chosen[k] = expert;
  }
  __syncwarp();
  const float divisor = shape.normalise ? sum + 1e-20f : 1;
  for (int k = lane; k < top_k; k += 32) {
    weights[k] = room.scores[chosen[k]] / divisor * shape.factor;
  }
  __syncwarp();
}

}  // namespace moela::cuda
