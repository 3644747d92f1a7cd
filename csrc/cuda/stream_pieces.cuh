// How 16-byte pieces reach a ring: what stream_wide.cuh waits for, and pieces that no copy can
// bring.
#pragma once

#include "cuda/ptx.cuh"

namespace moela::cuda {

// Waits until at most `pending` of this thread's groups of copies are on their way.
__device__ __forceinline__ void wait_copies_at_most(int pending) {
  switch (pending) {
    case 0:
      return wait_copies<0>();
    case 1:
      return wait_copies<1>();
    case 2:
      return wait_copies<2>();
    case 3:
      return wait_copies<3>();
    default:
      return wait_copies<4>();
  }
}

// `bytes` of 16 from any address, zero after them.
static __device__ __noinline__ uint4 unaligned_piece(const char* from, int bytes) {
  uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
  for (int word = 0; word < 4; word++) {
#pragma unroll 1
    for (int i = 0; i < 4 && word * 4 + i < bytes; i++) {
      words[word] |= static_cast<uint32_t>(static_cast<uint8_t>(from[word * 4 + i])) << i * 8;
    }
  }
  return {words[0], words[1], words[2], words[3]};
}

}  // namespace moela::cuda
