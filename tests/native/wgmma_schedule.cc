// Checks csrc/cuda/wgmma_schedule.h on the host: every row of every expert goes with every strip of
// features in exactly one tile, and tiles are no wider than they may be.
#include "cuda/wgmma_schedule.h"

#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

using namespace moela::cuda;

namespace {

void require(bool condition, const char* what) {
  if (condition) return;
  fprintf(stderr, "wgmma_schedule: %s\n", what);
  exit(1);
}

void check_first_slot(std::mt19937& random) {
  std::vector<int32_t> slots;
  for (int32_t slot = 0; slot < 200; slot++) {
    if (random() % 3 == 0) slots.push_back(slot);
  }
  const int32_t size = static_cast<int32_t>(slots.size());
  const int32_t begin = random() % (size + 1);
  for (int32_t row = 0; row < 40; row++) {
    int32_t expected = begin;
    while (expected < size && slots[expected] < row * 6) expected++;
    require(first_slot(slots.data(), begin, size, row, 6) == expected,
            "first_slot() is not the first slot of the row or a later one");
  }
}

template <int CLUSTER>
void check_tiles(std::mt19937& random, bool grouped) {
  const int32_t widest = random() % 2 ? 256 : 192;
  const int32_t strips = 1 + random() % 9;
  const int32_t processors = 2 + random() % 140;
  const int32_t experts = grouped ? 1 + random() % 20 : 1;
  std::vector<int32_t> first, rows, width, ends;
  int32_t end = 0, slot = 5;
  for (int32_t e = 0; e < experts; e++) {
    const int32_t count = random() % 4 == 0 ? 0 : 1 + random() % (1 << random() % 13);
    const RowTiles cut = grouped
                             ? cut_expert(count, widest, CLUSTER)
                             : cut_matrix(count, widest, CLUSTER, strips, processors);
    require(cut.width % 16 == 0 && cut.width >= 16 && cut.width <= widest, "a width is wrong");
    require(!grouped || cut.count == (count + CLUSTER * widest - 1) / (CLUSTER * widest),
            "an expert has more tiles than it needs");
    first.push_back(slot);
    rows.push_back(count);
    width.push_back(cut.width);
    slot += count;
    ends.push_back(end += cut.count * strips);
  }
  std::vector<int32_t> seen(static_cast<size_t>(slot) * strips, 0);
  for (int32_t rank = 0; rank < CLUSTER; rank++) {
    TileWalk<CLUSTER> walk{first.data(), rows.data(), width.data(), ends.data(), rank};
    for (int32_t t = 0; t < end; t++) {
      const Tile tile = walk.at(t);
      require(tile.strip >= 0 && tile.strip < strips, "a strip is out of range");
      require(tile.rows >= 0 && tile.rows <= width[tile.entry], "a tile is too wide");
      require(tile.first >= first[tile.entry] &&
                  tile.first + tile.rows <= first[tile.entry] + rows[tile.entry],
              "a tile has another expert's rows");
      for (int32_t i = 0; i < tile.rows; i++) seen[(tile.first + i) * strips + tile.strip]++;
    }
  }
  for (int32_t i = 5 * strips; i < slot * strips; i++) {
    require(seen[i] == 1, "a row is not in exactly one tile of a strip");
  }
}

}  // namespace

int main() {
  std::mt19937 random(20240507);
  for (int i = 0; i < 300; i++) {
    check_first_slot(random);
    for (bool grouped : {false, true}) {
      check_tiles<1>(random, grouped);
      check_tiles<2>(random, grouped);
    }
  }
  return 0;
}
