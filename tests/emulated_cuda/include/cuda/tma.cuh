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

#if __CUDA_ARCH__ >= 900
inline void tensor_map_prefetch(const CUtensorMap*) {}
void emulated_tensor_copy(uint32_t to, const CUtensorMap& map, uint32_t barrier, uint16_t mask,
                          const int (&at)[5]);
inline void tensor_copy(uint32_t to, const CUtensorMap* map, uint32_t barrier, uint16_t mask,
                        int c0, int c1, int c2) {
  emulated_tensor_copy(to, *map, barrier, mask, {c0, c1, c2, 0, 0});
}
inline void tensor_copy(uint32_t to, const CUtensorMap* map, uint32_t barrier, uint16_t mask,
                        int c0, int c1, int c2, int c3, int c4) {
  emulated_tensor_copy(to, *map, barrier, mask, {c0, c1, c2, c3, c4});
}
#endif

}  // namespace moela::cuda
