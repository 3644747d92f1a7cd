// What the launchers of the wgmma family share: which kernel, and the maps of its weights.
#pragma once
#include <cstdlib>

#include "cuda/wgmma_product.cuh"

namespace moela::cuda {

inline bool wgmma_takes_matrix(const Weight& weight) {
  return weight.dtype == MOELA_BF16 && weight.cols % 8 == 0 && weight.part_bytes % 16 == 0 &&
         reinterpret_cast<uintptr_t>(weight.data) % 16 == 0;
}

// Bytes between parts; any multiple of 16 where there is only one.
inline uint64_t part_stride(const Weight& weight) {
  return weight.count > 1 ? weight.part_bytes : 16;
}

inline CUtensorMap weight_map(const Weight& weight, int mb, int cluster) {
  const uint64_t row = weight.cols * 2;
  const uint64_t sizes[3] = {static_cast<uint64_t>(weight.cols), static_cast<uint64_t>(weight.rows),
                             static_cast<uint64_t>(weight.count)};
  const uint64_t strides[2] = {row, part_stride(weight)};
  const uint32_t box[3] = {WGMMA_K, 128u * mb / cluster, 1};
  return tensor_map(weight.data, 3, sizes, strides, box);
}

// Eight rows of the matrix that lies lower in memory, then eight of the other, and so on.
inline CUtensorMap pair_map(const Weight& low, const Weight& high, int mb,
                            int cluster) {
  const uint64_t row = low.cols * 2;
  const uint64_t sizes[5] = {static_cast<uint64_t>(low.cols), 8, 2,
                             static_cast<uint64_t>(low.rows / 8), static_cast<uint64_t>(low.count)};
  const uint64_t strides[4] = {row, static_cast<uint64_t>(high.data - low.data), row * 8,
                               part_stride(low)};
  const uint32_t box[5] = {WGMMA_K, 8, 2, 8u * mb / cluster, 1};
  return tensor_map(low.data, 5, sizes, strides, box);
}

// Features a tile: twice as many where that still gives each multiprocessor a tile or more.
inline int wgmma_blocks_of_64(const Launch& at, int64_t features, int64_t rows, int64_t experts) {
  if (getenv("MB")) return atoi(getenv("MB"));
  const int64_t strips = (features + 255) / 256;
  const int64_t cuts = (rows + WGMMA_WIDEST<2> - 1) / WGMMA_WIDEST<2>;
  return strips * (cuts > experts ? cuts : experts) >= at.sms ? 2 : 1;
}

template <int MB, bool GATED, bool F32, int CLUSTER>
void launch_wgmma(const Launch& at, const CUtensorMap& map, WgmmaProblem problem,
                  int64_t features) {
  static const bool ready = [] {
    check(cudaFuncSetAttribute(wgmma_product<MB, GATED, F32, CLUSTER>,
                               cudaFuncAttributeMaxDynamicSharedMemorySize, WGMMA_SHARED),
          "asking for shared memory");
    return true;
  }();
  static_cast<void>(ready);
  problem.strips = static_cast<int32_t>((features + MB * 128 - 1) / (MB * 128));
  launch(at, wgmma_product<MB, GATED, F32, CLUSTER>, dim3(at.sms / CLUSTER * CLUSTER), dim3(WGMMA_THREADS), WGMMA_SHARED, map,
         problem);
}

}  // namespace moela::cuda
