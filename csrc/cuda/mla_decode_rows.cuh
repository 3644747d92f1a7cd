// The parts of mla_decode_rows.cu: what a block's groups share, results as threads have them, and
// where they go. Included there alone.
#pragma once

#include "cuda/mla_decode_items.cuh"

namespace moela::cuda {

namespace {

constexpr int GROUPS = 2;
constexpr int STAGES = 2;
constexpr int COPYING = 2;  // warps of a group
// Steps of the queries that stay in registers; with all nine others would not have room.
constexpr int KEPT = 6;
constexpr int THREADS = GROUPS * (COMPUTING + COPYING * 32);
static_assert(GROUPS * COPYING == 4, "registers are given to fours of warps");

struct Shared {
  KeyRing<STAGES> keys[GROUPS];
  alignas(16) float total[8][COMPUTING][4];  // of the split, as threads have it
  float totals[GROUPS][HEADS][2];            // its maxima and sums after a group's last share
  float states[GROUPS][HEADS][2];            // of a group's share
  TileRoom rooms[GROUPS];
  uint4 queries[GROUPS][4][9 - KEPT][32];  // the other steps, of each quarter of the dims
  uint64_t added[GROUPS];                  // one more share
  Item items[GROUPS][2];                   // at hand and before
  int last[GROUPS];
  Plan plan;
};
static_assert(sizeof(Shared) <= 227 << 10, "");

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// A result for heads g and g + 8: maxima and sums, then the factors with which a total and what
// comes to it enter.
struct States {
  float2 state[2];

  __device__ __forceinline__ void clear() { state[0] = state[1] = {-INFINITY, 0}; }
  __device__ __forceinline__ void read(const float* from, int g) {
    state[0] = *reinterpret_cast<const float2*>(from + 2 * g);
    state[1] = *reinterpret_cast<const float2*>(from + 2 * g + 16);
  }
  __device__ __forceinline__ void write(float* to, int g) const {
    *reinterpret_cast<float2*>(to + 2 * g) = state[0];
    *reinterpret_cast<float2*>(to + 2 * g + 16) = state[1];
  }
  // See Result::add().
  __device__ __forceinline__ void add(const States& x, float (&mine)[2], float (&other)[2]) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float most = fmaxf(state[i].x, x.state[i].x);
      mine[i] = power2(state[i].x - most);
      other[i] = power2(x.state[i].x - most);
      state[i] = {most, fmaf(x.state[i].y, other[i], state[i].y * mine[i])};
    }
  }
};
__device__ __forceinline__ float4 add_four(const float (&x)[4], const float (&other)[2],
                                           const float4& total, const float (&mine)[2]) {
  return {fmaf(x[0], other[0], total.x * mine[0]), fmaf(x[1], other[0], total.y * mine[0]),
          fmaf(x[2], other[1], total.z * mine[1]), fmaf(x[3], other[1], total.w * mine[1])};
}
__device__ __forceinline__ void set_four(float (&x)[4], const float4& v) {
  x[0] = v.x;
  x[1] = v.y;
  x[2] = v.z;
  x[3] = v.w;
}

// Of a group's warps.
struct SyncGroup {
  int group;
  __device__ __forceinline__ void operator()() const { named_sync<COMPUTING>(1 + group); }
};

__device__ __forceinline__ float* slot_at(const MlaDecodeArgs& a, int slot, int tile, int tiles) {
  return reinterpret_cast<float*>(a.scratch + a.slots.slots_offset) +
         (int64_t(slot) * tiles + tile) * a.slots.slot_floats;
}

// A row's result, of heads g and g + 8, to where it belongs.
__device__ __forceinline__ void write_out(const MlaDecodeArgs& a, const Item& item, int warp, int g,
                                          int t, const float (&o)[8][4], const States& states) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int head = item.head + g + 8 * i;
    if (head >= a.heads) continue;
    const float inverse = 1 / states.state[i].y;
    const int64_t to = (int64_t(item.row) * a.heads + head) * R + warp * 64 + 2 * t;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const float x = o[j][2 * i] * inverse, y = o[j][2 * i + 1] * inverse;
      if (a.out.dtype == MOELA_F32) {
        *reinterpret_cast<float2*>(static_cast<float*>(a.out.data) + to + 8 * j) = {x, y};
      } else {
        *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(a.out.data) + to + 8 * j) =
            bf16_pair(x, y);
      }
    }
  }
}

// After an item with a slot: who ends last of the row's merges its splits. A function of its own,
// with values: what it is given by reference would be in memory everywhere.
__device__ __noinline__ void merge(const MlaDecodeArgs& a, Item item, int group, int* room) {
  const int tiles = (a.heads + HEADS - 1) / HEADS;
  const int thread = threadIdx.x % COMPUTING, warp = thread / 32, lane = thread % 32;
  const int g = lane / 4, t = lane % 4;
  int* counter = reinterpret_cast<int*>(a.scratch) +
                 (int64_t(item.slot) * tiles + item.head / HEADS) * MLA_SHARES;
  __threadfence();
  SyncGroup{group}();
  if (thread == 0) {
    const bool last = atomicAdd(counter, 1) == item.parts - 1;
    if (last) *counter = 0;
    *room = last;
    __threadfence();
  }
  SyncGroup{group}();
  if (!*room) return;
  const int splits = (item.keys + item.length - 1) / item.length;
  States total;
  total.clear();
  float o[8][4] = {};
#pragma unroll 1
  for (int split = 0; split < splits; split++) {
    const float* slot = slot_at(a, item.slot + split, item.head / HEADS, tiles);
    float4 v[8];
#pragma unroll
    for (int j = 0; j < 8; j++) {
      v[j] = __ldcg(reinterpret_cast<const float4*>(slot) + j * COMPUTING + thread);
    }
    States states;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      states.state[i] = __ldcg(reinterpret_cast<const float2*>(slot + HEADS * R + 2 * g + 16 * i));
    }
    float mine[2], other[2];
    total.add(states, mine, other);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const float x[4] = {v[j].x, v[j].y, v[j].z, v[j].w};
      set_four(o[j], add_four(x, other, float4{o[j][0], o[j][1], o[j][2], o[j][3]}, mine));
    }
  }
  write_out(a, item, warp, g, t, o, total);
}
#endif

}  // namespace

}  // namespace moela::cuda
