// Which tiles of a grouped or plain product there are, and who has which: the part of the stream
// family's schedule that is the same for all types.
#pragma once

#include "cuda/launch.h"
#include "cuda/stream.h"
#include "cuda/stream_row.cuh"

namespace moela::cuda {

constexpr int STREAM_MOST_EXPERTS = 1024;

struct StreamArguments {
  Step step;
  int32_t rows;
  bool absorbed_only;
  bool pair;
  bool aligned;  // rows of weights begin on 16 bytes
  int32_t n;     // columns of the output
  int32_t k;
  int32_t groups;
  int32_t top_k, in_slots, experts;
  int32_t row_tiles;  // tiles of weight rows
  int32_t depth;      // of the ring
  bool single;        // no plan, and at most one tile of tokens
  const int32_t* plan;
  const char* in;
  int32_t in_dtype, out_dtype;
  const float* in_scales;  // of quantized rows
  int64_t row_bytes;       // of a weight
  const char* data[2];
  const char* scales[2];
  int64_t part[2], scale_part[2];
  const float* residual;
  char* out;
};

// The slots [begin, end) of an expert that this family computes, or rows without a plan.
struct SlotRange {
  int begin, end;
};
__device__ __forceinline__ SlotRange slot_range(const StreamArguments& a, int expert) {
  const Step& step = a.step;
  if (!a.plan) {
    const int end = step.end(a.rows);
    return {step.begin(a.rows), a.absorbed_only ? min(end, step.counts->n_absorbed) : end};
  }
  int begin = a.plan[expert], end = a.plan[expert + 1];
  if (!a.absorbed_only) return {begin, end};
  // Slots ascend within an expert: those of absorbed rows come first.
  const int bound = step.counts->n_absorbed * a.top_k;
  const int32_t* slots = a.plan + a.experts + 1;
  int low = begin;
  while (low < end) {
    const int middle = (low + end) / 2;
    if (slots[middle] < bound)
      low = middle + 1;
    else
      end = middle;
  }
  return {begin, low};
}

// What `before` has of each expert, from its second number on, becomes the sum up to there; its
// first becomes zero. All threads, after each has written its part.
__device__ __forceinline__ void sum_tiles(int experts, int* before) {
  if (threadIdx.x == 0) before[0] = 0;
  __syncthreads();
  if (threadIdx.x < 32) {
    int sum = 0;
    for (int first = 1; first <= experts; first += 32) {
      const int at = first + threadIdx.x;
      int value = at <= experts ? before[at] : 0;
#pragma unroll
      for (int s = 1; s < 32; s *= 2) {
        const int other = __shfl_up_sync(0xffffffff, value, s);
        if (static_cast<int>(threadIdx.x) >= s) value += other;
      }
      if (at <= experts) before[at] = sum + value;
      sum += __shfl_sync(0xffffffff, value, 31);
    }
  }
  __syncthreads();
}

// Tiles of TOKENS slots before each expert, [experts + 1] in shared memory. All threads.
template <int TOKENS>
__device__ __forceinline__ void count_tiles(const StreamArguments& a, int* before) {
  for (int e = threadIdx.x; e < a.experts; e += blockDim.x) {
    const SlotRange range = slot_range(a, e);
    before[e + 1] = (range.end - range.begin + TOKENS - 1) / TOKENS;
  }
  sum_tiles(a.experts, before);
}

// A tile: 16 or more rows of weights of one expert, and up to TOKENS slots. Tiles of the same
// weights follow one another, so that they meet in the second-level cache.
struct StreamTile {
  int expert;
  int row_tile;
  SlotRange slots;
};
template <int TOKENS>
__device__ __noinline__ StreamTile find_tile(const StreamArguments& a, const int* before,
                                             int tile) {
  int low = 0, high = a.experts;  // before[low] * row_tiles <= tile < before[high] * row_tiles
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (before[middle] * a.row_tiles <= tile)
      low = middle;
    else
      high = middle;
  }
  const int count = before[low + 1] - before[low];
  const int local = tile - before[low] * a.row_tiles;
  const int row_tile = local / count;
  SlotRange slots = slot_range(a, low);
  slots.begin += (local - row_tile * count) * TOKENS;
  slots.end = min(slots.end, slots.begin + TOKENS);
  return {low, row_tile, slots};
}

// Slot number of the tile's column, or -1.
__device__ __forceinline__ int tile_slot(const StreamArguments& a, const StreamTile& tile,
                                         int column) {
  const int at = tile.slots.begin + column;
  if (at >= tile.slots.end) return -1;
  return a.plan ? a.plan[a.experts + 1 + at] : at;
}
__device__ __forceinline__ int tile_in_row(const StreamArguments& a, const StreamTile& tile,
                                           int column) {
  const int slot = tile_slot(a, tile, column);
  return slot < 0 || !a.plan ? slot : slot / a.in_slots;
}

__device__ __forceinline__ void stream_store(const StreamArguments& a, int slot, int column,
                                             float value) {
  const int64_t at = static_cast<int64_t>(slot) * a.n + column;
  if (a.residual) value = __fadd_rn(value, a.residual[at]);
  if (a.out_dtype == MOELA_F32) {
    reinterpret_cast<float*>(a.out)[at] = value;
  } else {
    reinterpret_cast<uint16_t*>(a.out)[at] = static_cast<uint16_t>(bf16_pair(value, 0));
  }
}

// Elements [first, first + 4) of row `row` of [.., k], zero past its end; first is a multiple of
// four.
static __device__ __noinline__ float4 load4_unaligned(const char* in, int32_t dtype, int64_t begin,
                                                      int left) {
  const Tensor x{const_cast<char*>(in), dtype};
  float4 v{0, 0, 0, 0};
  if (left > 0) v.x = tensor_at(x, begin);
  if (left > 1) v.y = tensor_at(x, begin + 1);
  if (left > 2) v.z = tensor_at(x, begin + 2);
  if (left > 3) v.w = tensor_at(x, begin + 3);
  return v;
}
__device__ __forceinline__ float4 load4_of(const char* in, int32_t dtype, int64_t row, int first,
                                           int k) {
  const int64_t begin = row * k;
  if (k % 4 != 0) return load4_unaligned(in, dtype, begin + first, k - first);
  return load4({const_cast<char*>(in), dtype}, begin + first, begin + k);
}

inline StreamArguments stream_arguments(const Launch& at, const StreamProduct& p) {
  StreamArguments a{};
  a.step = at.step;
  a.rows = p.rows;
  a.absorbed_only = p.absorbed_only;
  a.pair = p.up.data != nullptr;
  a.n = static_cast<int32_t>(p.n);
  a.k = static_cast<int32_t>(p.k);
  a.groups = (a.k + 127) / 128;
  a.top_k = static_cast<int32_t>(p.plan ? p.top_k : 1);
  a.in_slots = static_cast<int32_t>(p.in_slots);
  a.experts = static_cast<int32_t>(p.plan ? p.experts : 1);
  a.plan = p.plan;
  a.in = static_cast<const char*>(p.in.data);
  a.in_dtype = p.in.dtype;
  a.out_dtype = p.out.dtype;
  const Weight* weights[2] = {&p.weight, &p.up};
  for (int i = 0; i < 2; i++) {
    a.data[i] = weights[i]->data;
    a.scales[i] = weights[i]->scales;
    a.part[i] = weights[i]->part_bytes;
    a.scale_part[i] = weights[i]->scale_part_bytes;
  }
  a.residual = p.residual;
  a.out = static_cast<char*>(p.out.data);
  return a;
}

}  // namespace moela::cuda
