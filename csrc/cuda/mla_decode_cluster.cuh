// The parts of mla_decode_cluster.cu: what a cluster's blocks share and say to each other. Included
// there alone.
#pragma once

#include "cuda/mla_decode_items.cuh"

namespace moela::cuda {

namespace {

constexpr int CLUSTER = MLA_SHARES;
constexpr int THREADS = COMPUTING + 32;
constexpr int SLICE = R / CLUSTER;  // columns that a block merges
constexpr int STAGES = 3;

struct Shared {
  KeyRing<STAGES> keys;
  alignas(
      128) float sent[CLUSTER][HEADS][SLICE];  // by target block; columns swapped, see column_at
  alignas(128) float received[CLUSTER][HEADS][SLICE];  // by source block
  alignas(16) float own_states[HEADS][2];              // maxima and sums
  float states[CLUSTER][HEADS][2];
  TileRoom room;
  uint64_t arrived;  // results of all blocks for a split
  uint64_t taken;    // all blocks have read what they received
  int last;
  Plan plan;
};

#if __CUDA_ARCH__ >= 900
// Where a slice has a head's column: eights of columns are swapped against bank conflicts.
__device__ __forceinline__ int column_at(int head, int column) { return column ^ (head % 8 * 8); }
// Of the warps that compute.
__device__ __forceinline__ void sync_computing() { named_sync<1, COMPUTING>(); }

// An item of a row that is alone in its step. It needs no plan, which takes its time.
__device__ __forceinline__ Item item_alone(const MlaDecodeArgs& a, int keys, int page, int pool,
                                           int index, int tiles, int clusters, int& items) {
  Item at{};
  at.keys = keys;
  at.page = page;
  at.pool = pool;
  at.length = mla_split_keys(a.splits, keys);
  const int splits = (keys + at.length - 1) / at.length;
  int group = (splits * tiles + clusters - 1) / clusters;
  if (splits > a.slots.capacity) group = splits;
  at.slot = splits > group ? 0 : -1;
  at.parts = (splits + group - 1) / group;
  at.begin = index / tiles * group;
  at.end = min(splits, at.begin + group);
  at.head = index % tiles * HEADS;
  items = at.parts * tiles;
  return at;
}

// The copying warp: this block's shares of one item.
__device__ __forceinline__ void copy_item(const MlaDecodeArgs& a, const Item& item, int rank,
                                          RingPlace<STAGES>& ring, Shared& s) {
  for (int split = item.begin; split < item.end; split++) {
    copy_share<1>(a, item, mla_share(item.keys, item.length, split, rank), 0, ring, s.keys);
  }
}
#endif  // __CUDA_ARCH__ >= 900

}  // namespace

}  // namespace moela::cuda
