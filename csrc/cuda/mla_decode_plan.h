// How mla_decode divides a row's keys: arithmetic for host and device.
//
// A row's keys are cut into splits at multiples of a length that its own position decides, so that
// a row's bits do not depend on its neighbours. Splits are merged in ascending order. A block may
// take several splits of a row one after another, or one: the result is the same.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define MOELA_BOTH __host__ __device__ __forceinline__
#else
#define MOELA_BOTH inline
#endif

namespace moela::cuda {

constexpr int MLA_FAST_R = 512;    // kv_lora_rank and
constexpr int MLA_FAST_DR = 64;    // qk_rope_head_dim of the paths on tensor cores
constexpr int MLA_HEAD_TILE = 16;  // heads of an mma.sync,
constexpr int MLA_WIDE_TILE = 64;  // of a wgmma

// Rows from which on each is work enough for a block, without clusters.
constexpr int MLA_MANY_ROWS = 32;

// Lengths are multiples of `least`, at most `most`; below `most` a row has at most `parts` splits.
struct MlaSplits {
  int32_t least, most, parts;
};

// At least 128 keys for each of the eight blocks of a cluster: merging takes as long as that.
constexpr MlaSplits MLA_CLUSTER_SPLITS = {1024, 2048, 4};
// Eight pages at least. parts 0: as many as give every block work.
constexpr MlaSplits MLA_WIDE_SPLITS = {512, 1 << 30, 8};

MOELA_BOTH int mla_split_keys(const MlaSplits& splits, int keys) {
  const int part = (keys + splits.parts - 1) / splits.parts;
  const int length = (part + splits.least - 1) / splits.least * splits.least;
  return length < splits.most ? length : splits.most;
}
MOELA_BOTH int mla_split_count(const MlaSplits& splits, int keys) {
  const int length = mla_split_keys(splits, keys);
  return (keys + length - 1) / length;
}

// A split is shared by eight at most, who take its keys in tiles of 32.
constexpr int MLA_SHARES = 8;
constexpr int MLA_SHARE_TILE = 32;

// Keys [begin, end) of the share `rank` of a split, nothing when begin >= end; `shares` have any.
struct MlaShare {
  int32_t begin, end, shares;
};
MOELA_BOTH MlaShare mla_share(int keys, int length, int split, int rank) {
  const int begin = split * length, end = keys < begin + length ? keys : begin + length;
  const int each = (end - begin + MLA_SHARES - 1) / MLA_SHARES;
  const int part = (each + MLA_SHARE_TILE - 1) / MLA_SHARE_TILE * MLA_SHARE_TILE;
  const int last = begin + (rank + 1) * part;
  return {begin + rank * part, end < last ? end : last, (end - begin + part - 1) / part};
}

// Scratch memory: counters that are zero between launches, then slots, each the result of one split
// of one row for one tile of heads: [heads][r] sums, then [8][heads][2] maxima and sums of weights.
struct MlaSlots {
  int32_t capacity;      // in splits of all head tiles
  int64_t slot_floats;   // of a split and tile
  int64_t slots_offset;  // bytes
  int64_t rows_offset;   // of what the merge of wide tiles needs of each row
};

constexpr int64_t MLA_ROWS_BYTES = 256 << 10;  // 8 bytes a row

MOELA_BOTH MlaSlots mla_slots(int64_t scratch_bytes, int heads, int tile, int r) {
  const int64_t tiles = (heads + tile - 1) / tile;
  const int64_t floats = int64_t(tile) * r + 8 * tile * 2;
  const int64_t counters = tiles * 8 * 4;  // bytes of a split
  int64_t capacity = (scratch_bytes - 1024 - MLA_ROWS_BYTES) / (floats * 4 * tiles + counters);
  if (capacity < 0) capacity = 0;
  if (capacity > (1 << 20)) capacity = 1 << 20;
  const int64_t rows_offset = (capacity * counters + 1023) / 1024 * 1024;
  return {int32_t(capacity), floats, rows_offset + MLA_ROWS_BYTES, rows_offset};
}
// What gives room to `splits` splits in flight. With less, rows take longer and give the same.
inline int64_t mla_slots_bytes(int64_t splits, int heads, int tile, int r) {
  const int64_t tiles = (heads + tile - 1) / tile;
  return 4096 + MLA_ROWS_BYTES + splits * tiles * ((int64_t(tile) * r + 16 * tile) * 4 + 32);
}

}  // namespace moela::cuda
