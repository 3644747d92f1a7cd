// How mla_prefill divides its work and its scratch memory: host arithmetic only.
//
// Keys and values are up-projected a pass at a time, into a workspace that does not grow with the
// context. A pass is some heads times a window of the key blocks of all projected segments, laid
// end to end. Each segment's blocks of 128 keys begin at its key 0, so that a row meets the same
// blocks in the same order whatever else runs; between windows its running softmax waits in f32,
// exactly.
#pragma once

#include <algorithm>
#include <cstdint>

namespace moela::cuda {

// Keys of a block, rows of a tile.
constexpr int64_t MLA_PREFILL_TILE = 128;
// A pass's keys and values at most: 16,384 keys of 16 heads of 128 + 128 in bf16.
constexpr int64_t MLA_PREFILL_KV_BYTES = int64_t{1} << 27;

struct MlaPrefillShape {
  int64_t heads, dn, dr, dv, r;
};

// Rows [row, row + rows) of the step, rows <= 128, at positions [position, position + rows); key 0
// of their segment begins the key block `block`.
struct MlaPrefillTile {
  int32_t row, rows, position, block;
};

// In device memory; made by the first pass.
struct MlaPrefillTables {
  int32_t n_tiles;
  int32_t n_blocks;
  int32_t reserved[2];
  MlaPrefillTile tiles[1];  // [n_tiles], most keys first
};

struct MlaPrefillPlan {
  int64_t blocks;  // of keys, all segments
  int64_t heads;   // of a pass
  int64_t window;  // blocks of a pass
  // Where things lie in scratch memory, all 1,024-byte aligned; `bytes` is its whole size.
  int64_t latents, rotary, weights, keys, state, bytes;

  // Whether a row's softmax may wait between passes.
  bool carries() const { return window < blocks; }
};

// Bytes of an element: the fast path keeps bf16, the generic one f32.
inline int64_t mla_prefill_element(bool fast) { return fast ? 2 : 4; }

// Floats that a row and head keep between windows: max, four partial sums, and o [dv].
inline int64_t mla_prefill_state(int64_t dv) { return dv + 8; }

inline MlaPrefillPlan mla_prefill_layout(const MlaPrefillShape& shape, int64_t rows, int64_t blocks,
                                         bool fast, int64_t heads, int64_t window) {
  const int64_t element = mla_prefill_element(fast);
  MlaPrefillPlan plan{};
  plan.blocks = blocks;
  plan.heads = heads;
  plan.window = window;
  int64_t end = 0;
  const auto take = [&end](int64_t bytes) {
    const int64_t begin = end;
    end += (bytes + 1023) / 1024 * 1024;
    return begin;
  };
  take(sizeof(MlaPrefillTables) + rows * sizeof(MlaPrefillTile));
  const int64_t keys = window * MLA_PREFILL_TILE;
  plan.latents = take(keys * shape.r * element);
  plan.rotary = take(keys * shape.dr * element);
  plan.weights = take(fast ? heads * (shape.dn + shape.dv) * shape.r * element : 0);
  plan.keys = take(keys * heads * (shape.dn + shape.dv) * element);
  plan.state =
      take(plan.carries() ? rows * heads * mla_prefill_state(shape.dv) * sizeof(float) : 0);
  plan.bytes = end;
  return plan;
}

// The passes for `rows` rows whose segments have `keys` keys, each segment's rounded up to whole
// blocks, within `scratch_bytes`. window is 0 where not even one block fits.
inline MlaPrefillPlan mla_prefill_plan(const MlaPrefillShape& shape, int64_t rows, int64_t keys,
                                       bool fast, int64_t scratch_bytes) {
  const int64_t blocks = std::max<int64_t>(1, (keys + MLA_PREFILL_TILE - 1) / MLA_PREFILL_TILE);
  const int64_t tiles = (rows + MLA_PREFILL_TILE - 1) / MLA_PREFILL_TILE;
  // Four tiles for each of some 132 multiprocessors, else all heads.
  int64_t heads = std::min(shape.heads, std::max<int64_t>(16, 528 / std::max<int64_t>(1, tiles)));
  for (;; heads = (heads + 1) / 2) {
    const int64_t block_bytes =
        MLA_PREFILL_TILE * heads * (shape.dn + shape.dv) * mla_prefill_element(fast);
    int64_t window = std::min(blocks, std::max<int64_t>(1, MLA_PREFILL_KV_BYTES / block_bytes));
    // The layout's size is linear in the window, but for the state, which is there or not.
    while (window > 0) {
      const auto plan = mla_prefill_layout(shape, rows, blocks, fast, heads, window);
      if (plan.bytes <= scratch_bytes) break;
      const int64_t unit = mla_prefill_layout(shape, rows, blocks + 1, fast, heads, 1).bytes -
                           mla_prefill_layout(shape, rows, blocks + 1, fast, heads, 0).bytes;
      window -= std::max<int64_t>(1, (plan.bytes - scratch_bytes) / (unit + 1024));
    }
    window = std::max<int64_t>(window, 0);
    if (window >= std::min<int64_t>(blocks, 4) || heads == 1) {
      return mla_prefill_layout(shape, rows, blocks, fast, heads, window);
    }
  }
}

// Scratch bytes that let programs of at most `rows` rows run in windows of full size.
inline int64_t mla_prefill_scratch(const MlaPrefillShape& shape, int64_t rows, bool fast) {
  return mla_prefill_plan(shape, rows, int64_t{1} << 40, fast, INT64_MAX).bytes;
}

}  // namespace moela::cuda
