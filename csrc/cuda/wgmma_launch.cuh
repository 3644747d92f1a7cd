// What the launchers of the wgmma family share: which kernel, and the maps of its weights.
#pragma once

#include <atomic>

#include "cuda/wgmma_product.cuh"

namespace moela::cuda {

inline bool wgmma_takes_matrix(const Weight& weight) {
  return weight.dtype == MOELA_BF16 && weight.rows % 8 == 0 && weight.cols % 8 == 0 &&
         weight.part_bytes % 16 == 0 && reinterpret_cast<uintptr_t>(weight.data) % 16 == 0;
}

inline WgmmaSide wgmma_side(Tensor in, int64_t k, Tensor out, int64_t n) {
  WgmmaSide side{};
  side.in = in.data;
  side.out = out.data;
  side.k = static_cast<int32_t>(k);
  side.n = static_cast<int32_t>(n);
  side.pitch = side.n * (out.dtype == PROJECTED_BF16 ? 2 : 1);
  side.out_bf16 = out.dtype != MOELA_F32;
  return side;
}

// Bytes between parts; any multiple of 16 where there is only one.
inline uint64_t part_stride(const Weight& weight) {
  return weight.count > 1 ? weight.part_bytes : 16;
}

// Boxes of `features` rows of one part.
inline CUtensorMap weight_map(const Weight& weight, uint32_t features) {
  const uint64_t row = weight.cols * 2;
  const uint64_t sizes[3] = {static_cast<uint64_t>(weight.cols), static_cast<uint64_t>(weight.rows),
                             static_cast<uint64_t>(weight.count)};
  const uint64_t strides[2] = {row, part_stride(weight)};
  const uint32_t box[3] = {WGMMA_K, features, 1};
  return tensor_map(weight.data, 3, sizes, strides, box);
}

// Boxes of `features` rows: eight of the matrix that lies lower in memory, then eight of the other,
// and so on.
inline CUtensorMap pair_map(const Weight& low, const Weight& high, uint32_t features) {
  const uint64_t row = low.cols * 2;
  const uint64_t sizes[5] = {static_cast<uint64_t>(low.cols), 8, 2,
                             static_cast<uint64_t>(low.rows / 8), static_cast<uint64_t>(low.count)};
  const uint64_t strides[4] = {row, static_cast<uint64_t>(high.data - low.data), row * 8,
                               part_stride(low)};
  const uint32_t box[5] = {WGMMA_K, 8, 2, features / 16, 1};
  return tensor_map(low.data, 5, sizes, strides, box);
}

// Of experts: rows of a wide tile at most, and the rows of one, on average, from which it pays.
constexpr int32_t WGMMA_EXPERT_WIDE = 128, WGMMA_EXPERT_ROWS = 96;
// Of the matrix beside them: where experts have few rows, wider tiles would leave less room for the
// weights under way.
template <int MB>
constexpr int32_t WGMMA_DENSE_WIDE = MB == 1 ? 128 : 144;

// Tiles of 256 features, weights shared by the two blocks of a cluster, where rows are many: there
// the second-level cache would hold 128 features back. Measured on an H100; the choice changes no
// bit.
inline bool wgmma_wide(int64_t features, int64_t rows, int64_t experts, bool pair) {
  if (experts > 1) return rows / experts >= WGMMA_EXPERT_ROWS;
  return features >= 1024 && rows >= 256 && features * rows >= (pair ? 1800000 : 2500000);
}

template <int MB, bool GATED, bool EXTRA, bool F32, int CLUSTER>
void launch_wgmma(const Launch& at, const CUtensorMap& map, const CUtensorMap& second,
                  WgmmaProblem problem, int32_t widest) {
  // Once for each device.
  static std::atomic<uint64_t> ready{0};
  int device;
  check(cudaGetDevice(&device), "asking for the device");
  const uint64_t bit = uint64_t{1} << (device % 64);
  if ((ready.load() & bit) == 0) {
    check(cudaFuncSetAttribute(wgmma_product<MB, GATED, EXTRA, F32, CLUSTER>,
                               cudaFuncAttributeMaxDynamicSharedMemorySize, WGMMA_SHARED),
          "asking for shared memory");
    ready |= bit;
  }
  problem.widest = widest;
  problem.dense_widest = WGMMA_DENSE_WIDE<MB>;
  for (WgmmaSide& side : problem.side) {
    side.strips = ((GATED ? 2 * side.n : side.n) + MB * 128 - 1) / (MB * 128);
  }
  launch<CLUSTER>(at, wgmma_product<MB, GATED, EXTRA, F32, CLUSTER>,
                  dim3(at.sms / CLUSTER * CLUSTER), dim3(WGMMA_THREADS), WGMMA_SHARED, map, second,
                  problem);
}

// `map` makes the map of boxes of so many features, of the first or the second matrix.
template <bool GATED, bool EXTRA, class Map>
void launch_wgmma(const Launch& at, const WgmmaProblem& problem, int32_t in_dtype, Map map) {
  const int64_t rows = static_cast<int64_t>(at.bucket) * problem.top_k;
  const int64_t features = int64_t{problem.side[0].n + problem.side[1].n} * (GATED ? 2 : 1);
  constexpr int32_t NARROW = WGMMA_WIDEST<1>;
  const auto second = [&](const CUtensorMap& first, uint32_t box) {
    return problem.dense ? map(box, 1) : first;
  };
  if (wgmma_wide(features, rows, problem.experts, problem.dense != 0) && in_dtype != MOELA_F32) {
    // An expert's rows vary: narrower tiles fit them better, and leave room for a stage more.
    const int32_t wide = problem.plan != nullptr ? WGMMA_EXPERT_WIDE : WGMMA_WIDEST<2>;
    const CUtensorMap first = map(256 / 2, 0);
    return launch_wgmma<2, GATED, EXTRA, false, 2>(at, first, second(first, 256 / 2), problem,
                                                   wide);
  }
  const CUtensorMap first = map(128, 0);
  if (in_dtype == MOELA_F32) {
    launch_wgmma<1, GATED, EXTRA, true, 1>(at, first, second(first, 128), problem, NARROW);
  } else {
    launch_wgmma<1, GATED, EXTRA, false, 1>(at, first, second(first, 128), problem, NARROW);
  }
}

}  // namespace moela::cuda
