// Which tile of a grouped product is whose: each expert's rows are cut evenly into tiles of at most
// `widest` rows, a multiple of 16 wide, and each of those goes with every strip of features. Tiles
// are numbered expert by expert, strip by strip, so that tiles in flight together share weights.
// On the host and on the device.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MOELA_BOTH __host__ __device__ __forceinline__
#else
#define MOELA_BOTH inline
#endif

namespace moela::cuda {

// How one expert's rows are cut: tile i has rows [i width, (i + 1) width), the last fewer. The
// blocks of a cluster take neighbouring tiles, some of which may be empty: `count` is of clusters.
struct RowTiles {
  int32_t count;
  int32_t width;
};

MOELA_BOTH RowTiles cut_rows(int32_t rows, int32_t count, int32_t cluster) {
  const int32_t tiles = count * cluster;
  const int32_t width = ((rows + tiles - 1) / tiles + 15) / 16 * 16;
  return {(rows + cluster * width - 1) / (cluster * width), width};
}

// As few tiles as `widest` allows.
MOELA_BOTH RowTiles cut_expert(int32_t rows, int32_t widest, int32_t cluster) {
  if (rows <= 0) return {0, 16};
  return cut_rows(rows, (rows + cluster * widest - 1) / (cluster * widest), cluster);
}

// For a single matrix: the cut whose tiles keep `processors` busy for the shortest time, the first
// of CUTS numbers of tiles from the fewest on. A tile takes as long as its rows and some more.
constexpr int32_t CUTS = 16;

struct TimedCut {
  RowTiles cut;
  int32_t time;
};

MOELA_BOTH TimedCut time_cut(int32_t rows, int32_t widest, int32_t cluster, int32_t strips,
                             int32_t processors, int32_t more) {
  constexpr int32_t OVERHEAD = 32;
  const int32_t clusters = processors / cluster;
  const int32_t fewest = (rows + cluster * widest - 1) / (cluster * widest);
  const RowTiles cut = cut_rows(rows, fewest + more, cluster);
  return {cut, (cut.count * strips + clusters - 1) / clusters * (cut.width + OVERHEAD)};
}

MOELA_BOTH RowTiles cut_matrix(int32_t rows, int32_t widest, int32_t cluster, int32_t strips,
                               int32_t processors) {
  if (rows <= 0) return {0, 16};
  TimedCut best = time_cut(rows, widest, cluster, strips, processors, 0);
  for (int32_t more = 1; more < CUTS; more++) {
    const TimedCut cut = time_cut(rows, widest, cluster, strips, processors, more);
    if (cut.time < best.time) best = cut;
  }
  return best.cut;
}

struct Tile {
  int32_t entry;  // an expert, or another matrix
  int32_t strip;
  int32_t first;  // index of its first slot, or its first row
  int32_t rows;   // may be 0
};

// Tiles in ascending order: `at` gives the tile of block `rank` of the cluster that has the
// cluster's tile t. Of each expert: where its slots begin, how many they are, the width of its
// tiles, and how many tiles of clusters it and the experts before it have.
template <int CLUSTER>
struct TileWalk {
  const int32_t* first;
  const int32_t* rows;
  const int32_t* width;
  const int32_t* ends;
  int32_t rank;
  int32_t entry = 0;
  int32_t base = 0;

  MOELA_BOTH Tile at(int32_t t) {
    while (t >= ends[entry]) base = ends[entry++];
    const int32_t count = rows[entry];
    const int32_t columns = width[entry];
    const int32_t cuts = (count + CLUSTER * columns - 1) / (CLUSTER * columns);
    const int32_t strip = (t - base) / cuts;
    const int32_t begin = ((t - base - strip * cuts) * CLUSTER + rank) * columns;
    const int32_t left = count - begin;
    return {entry, strip, first[entry] + (left > 0 ? begin : count - 1),
            left < 0         ? 0
            : left < columns ? left
                             : columns};
  }
};

// The first of slots[begin, end), ascending, that belongs to row `row` or a later one.
MOELA_BOTH int32_t first_slot(const int32_t* slots, int32_t begin, int32_t end, int32_t row,
                              int32_t top_k) {
  if (row == 0) return begin;
  const int32_t slot = row * top_k;
  while (begin < end) {
    const int32_t middle = begin + (end - begin) / 2;
    if (slots[middle] < slot) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

}  // namespace moela::cuda
