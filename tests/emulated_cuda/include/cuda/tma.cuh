// What csrc/cuda/tma.cuh says, on the emulated GPU.
#pragma once

#include "cuda/barrier.cuh"
#include "cuda/launch.h"

// Of bf16: where elements lie, and how many of each dimension a box takes.
struct CUtensorMap {
  const char* data;
  uint32_t rank;
  uint64_t sizes[5], strides[5];
  uint32_t box[5];
};

namespace moela::cuda {

inline CUtensorMap tensor_map(const void* data, uint32_t rank, const uint64_t* sizes,
                              const uint64_t* strides, const uint32_t* box) {
  CUtensorMap map{static_cast<const char*>(data), rank, {}, {}, {}};
  map.strides[0] = 2;
  for (uint32_t i = 0; i < rank; i++) {
    map.sizes[i] = sizes[i];
    map.box[i] = box[i];
    if (i > 0) map.strides[i] = strides[i - 1];
  }
  return map;
}

}  // namespace moela::cuda
