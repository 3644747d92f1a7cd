// What the grouped products of the experts share: rows that go through one expert, a block at a
// time.
#pragma once

#include <cstring>
#include <vector>

#include "products.h"

namespace moela {

// At most this many rows a block, where they are gathered as f32: they fit the second-level cache.
// Packed they are smaller: the more of them, the fewer times a weight is unpacked.
constexpr int64_t EXPERT_ROWS = 48;
inline int64_t expert_rows(bool packed) { return packed ? PackedBlocks::MAX_ROWS : EXPERT_ROWS; }

// Tiles of a weight for blocks of few rows, where time goes into reading it, and of many, where
// rows are gathered anew for each tile. A tile is computed EXPERT_STRIP columns at a time.
constexpr int64_t EXPERT_FEW_ROWS = 8;
constexpr int64_t EXPERT_FEW_ROWS_WIDEST = 64;
constexpr int64_t EXPERT_WIDEST = 256;
constexpr int64_t EXPERT_STRIP = 64;

// `count` slots of one expert: those listed, or `first` and on when there is no list.
struct ExpertBlock {
  int64_t expert;
  int64_t count;
  const int32_t* slots;
  int64_t first;

  int64_t slot(int64_t i) const { return slots ? slots[i] : first + i; }
  bool gathered() const { return slots && count > 1; }
};

// The blocks of a plan (see MOE_PLAN); experts without a row have none.
inline std::vector<ExpertBlock> expert_blocks(const int32_t* plan, int64_t experts, bool packed) {
  std::vector<ExpertBlock> blocks;
  const int32_t* slots = plan + experts + 1;
  for (int64_t expert = 0; expert < experts; expert++) {
    const int64_t end = plan[expert + 1];
    const int64_t rows = block_rows_of(end - plan[expert], expert_rows(packed));
    for (int64_t i = plan[expert]; i < end; i += rows) {
      blocks.push_back({expert, std::min(rows, end - i), slots + i, 0});
    }
  }
  return blocks;
}

// The blocks of rows [begin, end) that all go through part 0.
inline std::vector<ExpertBlock> dense_blocks(int64_t begin, int64_t end, bool packed) {
  std::vector<ExpertBlock> blocks;
  const int64_t rows = block_rows_of(end - begin, expert_rows(packed));
  for (int64_t row = begin; row < end; row += rows) {
    blocks.push_back({0, std::min(rows, end - row), nullptr, row});
  }
  return blocks;
}

inline std::vector<int64_t> row_counts(const std::vector<ExpertBlock>& blocks) {
  std::vector<int64_t> counts;
  for (const ExpertBlock& block : blocks) counts.push_back(block.count);
  return counts;
}

inline int64_t largest_block(const std::vector<ExpertBlock>& blocks) {
  int64_t largest = 1;
  for (const ExpertBlock& block : blocks) largest = std::max(largest, block.count);
  return largest;
}

inline int64_t expert_tile_width(const Context& context, const std::vector<ExpertBlock>& blocks,
                                 int64_t n, int64_t k) {
  const int64_t largest = largest_block(blocks);
  return tile_width(context, n, blocks.size(), largest * k,
                    largest <= EXPERT_FEW_ROWS ? EXPERT_FEW_ROWS_WIDEST : EXPERT_WIDEST);
}

// Block and tile of each task. An expert's tiles follow one another, as they do in memory, so that
// its rows stay in the cache; its blocks take turns, so that a tile does, too.
struct ExpertTask {
  int64_t block;
  int64_t tile;
};
inline std::vector<ExpertTask> expert_tasks(const std::vector<ExpertBlock>& blocks, int64_t tiles) {
  std::vector<ExpertTask> tasks;
  const int64_t n_blocks = blocks.size();
  for (int64_t first = 0, end; first < n_blocks; first = end) {
    for (end = first; end < n_blocks && blocks[end].expert == blocks[first].expert;) end++;
    for (int64_t tile = 0; tile < tiles; tile++) {
      for (int64_t block = first; block < end; block++) tasks.push_back({block, tile});
    }
  }
  return tasks;
}

// The rows of a block as a matrix [count, width]: in place where they lie together, else copied to
// `room`. Slot s is row s / per_row of `in`.
inline const float* block_rows(const ExpertBlock& block, int64_t per_row, const float* in,
                               int64_t width, float* room) {
  if (!block.gathered()) return in + block.slot(0) / per_row * width;
  for (int64_t i = 0; i < block.count; i++) {
    memcpy(room + i * width, in + block.slot(i) / per_row * width, width * sizeof(float));
  }
  return room;
}

}  // namespace moela
