// What the launchers of the wgmma family share: which kernel, and the maps of its weights.
#pragma once

#include <atomic>

#include "cuda/wgmma_product.cuh"

namespace moela::cuda {

inline bool wgmma_takes_matrix(const Weight& weight) {
  return weight.dtype == MOELA_BF16 && weight.rows % 8 == 0 && weight.cols % 8 == 0 &&
         weight.part_bytes % 16 == 0 && reinterpret_cast<uintptr_t>(weight.data) % 16 == 0;
}

inline WgmmaOut wgmma_out(Tensor out, int64_t n) {
  WgmmaOut to{};
  to.data = out.data;
  to.n = static_cast<int32_t>(n);
  to.pitch = to.n * (out.dtype == PROJECTED_BF16 ? 2 : 1);
  to.bf16 = out.dtype != MOELA_F32;
  return to;
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

// Tiles of 256 features, weights shared by the two blocks of a cluster, where rows are many: there
// the second-level cache would hold 128 features back. Measured on an H100; the choice changes no
// bit.
inline bool wgmma_wide(int64_t features, int64_t rows, int64_t experts) {
  if (experts > 1) return rows / experts >= 320;
  return features >= 1024 && rows >= 256 && features * rows >= 2500000;
}

template <int MB, bool GATED, bool F32, int CLUSTER>
void launch_wgmma(const Launch& at, const CUtensorMap& map, const CUtensorMap& second,
                  WgmmaProblem problem, int32_t widest) {
  // Once for each device.
  static std::atomic<uint64_t> ready{0};
  int device;
  check(cudaGetDevice(&device), "asking for the device");
  const uint64_t bit = uint64_t{1} << (device % 64);
  if ((ready.load() & bit) == 0) {
    check(cudaFuncSetAttribute(wgmma_product<MB, GATED, F32, CLUSTER>,
                               cudaFuncAttributeMaxDynamicSharedMemorySize, WGMMA_SHARED),
          "asking for shared memory");
    ready |= bit;
  }
  problem.widest = widest;
  const auto strips = [](int32_t n) { return ((GATED ? 2 * n : n) + MB * 128 - 1) / (MB * 128); };
  problem.first_strips = strips(problem.out[0].n);
  problem.strips = problem.first_strips + strips(problem.out[1].n);
  launch<CLUSTER>(at, wgmma_product<MB, GATED, F32, CLUSTER>, dim3(at.sms / CLUSTER * CLUSTER),
                  dim3(WGMMA_THREADS), WGMMA_SHARED, map, second, problem);
}

// `map` makes the map of boxes of so many features, of the first or the second matrix.
template <bool GATED, class Map>
void launch_wgmma(const Launch& at, const WgmmaProblem& problem, int32_t in_dtype, Map map) {
  const int64_t rows = static_cast<int64_t>(at.bucket) * problem.top_k;
  const int64_t features = int64_t{problem.out[0].n + problem.out[1].n} * (GATED ? 2 : 1);
  constexpr int32_t NARROW = WGMMA_WIDEST<1>;
  const auto second = [&](const CUtensorMap& first, uint32_t box) {
    return problem.out[1].n ? map(box, 1) : first;
  };
  if (wgmma_wide(features, rows, problem.experts) && in_dtype != MOELA_F32) {
    const int32_t wide = problem.plan != nullptr ? WGMMA_WIDEST<2> : WGMMA_WIDEST_ADDING;
    const CUtensorMap first = map(256 / 2, 0);
    return launch_wgmma<2, GATED, false, 2>(at, first, second(first, 256 / 2), problem, wide);
  }
  const CUtensorMap first = map(128, 0);
  if (in_dtype == MOELA_F32) {
    launch_wgmma<1, GATED, true, 1>(at, first, second(first, 128), problem, NARROW);
  } else {
    launch_wgmma<1, GATED, false, 1>(at, first, second(first, 128), problem, NARROW);
  }
}

}  // namespace moela::cuda
