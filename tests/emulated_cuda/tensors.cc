// The tensor memory accelerator's boxes.
#include "cuda/tma.cuh"
#include "memory.h"
#include "swizzle.h"

#if __CUDA_ARCH__ >= 900
namespace moela::cuda {
namespace {

// An element of a box, or zero where the tensor has none.
uint16_t element(const CUtensorMap& map, const int64_t (&at)[5]) {
  const char* from = map.data;
  for (uint32_t i = 0; i < map.rank; i++) {
    if (at[i] < 0 || at[i] >= static_cast<int64_t>(map.sizes[i])) return 0;
    from += at[i] * static_cast<int64_t>(map.strides[i]);
  }
  uint16_t value;
  memcpy(&value, from, sizeof value);
  return value;
}

void bring(uint32_t to, const CUtensorMap& map, const int (&begin)[5], int bytes) {
  for (int i = 0; i < bytes / 2; i++) {
    int64_t at[5] = {};
    int64_t left = i;
    for (uint32_t d = 0; d < map.rank; d++) {
      at[d] = begin[d] + left % map.box[d];
      left /= map.box[d];
    }
    *static_cast<uint16_t*>(emulated::swizzled(to + 2 * i)) = element(map, at);
  }
}

}  // namespace

void emulated_tensor_copy(uint32_t to, const CUtensorMap& map, uint32_t barrier, uint16_t mask,
                          const int (&begin)[5]) {
  int bytes = 2;
  for (uint32_t i = 0; i < map.rank; i++) bytes *= static_cast<int>(map.box[i]);
  if (to % 1024 != 0 && bytes > 1024) emulated::fail("a box whose place is no multiple of 1024");
  if (map.box[0] != 64) emulated::fail("a box of rows that have not 128 bytes");
  const int own = emulated::self().block->rank;
  for (int rank = 0; rank < 16; rank++) {
    if (!(mask == 0 ? rank == own : mask >> rank & 1)) continue;
    const uint32_t there = remote(to, rank), gate = remote(barrier, rank);
    memset(emulated::pointer_of(there), emulated::POISON, bytes);
    std::vector<int> at(begin, begin + 5);
    emulated::later([there, gate, map, bytes, at] {
      const int copy[5] = {at[0], at[1], at[2], at[3], at[4]};
      bring(there, map, copy, bytes);
      emulated_landed(gate, bytes);
    });
  }
}

}  // namespace moela::cuda
#endif
