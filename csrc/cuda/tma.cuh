// Tensor maps: how the tensor memory accelerator finds boxes of a weight in device memory. They are
// made by the driver's function, found at run time, so that the library does not link to a driver.
#pragma once

#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/barrier.cuh"
#include "cuda/launch.h"

namespace moela::cuda {

inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
  static const auto encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                           cudaEnableDefault, &found),
          "looking for cuTensorMapEncodeTiled");
    if (found != cudaDriverEntryPointSuccess) {
      throw Error(MOELA_ERR_DEVICE,
                  "Cannot find cuTensorMapEncodeTiled: the driver must be of CUDA 12.0 or newer");
    }
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  return encoder;
}

// A map of a bf16 tensor of `rank` dimensions, the innermost first, whose boxes land in shared
// memory in rows of 128 bytes, swizzled. strides[i]: bytes between neighbours in dimension i + 1.
inline CUtensorMap tensor_map(const void* data, uint32_t rank, const uint64_t* sizes,
                              const uint64_t* strides, const uint32_t* box) {
  CUtensorMap map;
  const uint32_t steps[5] = {1, 1, 1, 1, 1};
  const CUresult result = tensor_map_encoder()(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, rank, const_cast<void*>(data), sizes, strides, box,
      steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw Error(MOELA_ERR_DEVICE,
                "cuTensorMapEncodeTiled failed with " + std::to_string(static_cast<int>(result)));
  }
  return map;
}

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void tensor_map_prefetch(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Boxes of three and of five dimensions, to the blocks of `mask` of the cluster (0: this one
// alone); each adds its bytes to the barrier's phase there.
__device__ __forceinline__ void tensor_copy(uint32_t to, const CUtensorMap* map, uint32_t barrier,
                                            uint16_t mask, int c0, int c1, int c2) {
  if (mask == 0) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
        "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2)
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
        "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "h"(mask)
        : "memory");
  }
}
__device__ __forceinline__ void tensor_copy(uint32_t to, const CUtensorMap* map, uint32_t barrier,
                                            uint16_t mask, int c0, int c1, int c2, int c3, int c4) {
  if (mask == 0) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(to),
        "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8;" ::"r"(to),
        "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "h"(mask)
        : "memory");
  }
}
#endif

}  // namespace moela::cuda
