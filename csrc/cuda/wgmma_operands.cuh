// Where the operands of warpgroup products lie in shared memory, in the words of the instruction.
// PTX ISA, Asynchronous Warpgroup Level Matrix Instructions, matrix descriptor format.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace moela::cuda {

// Rows from a 1024-byte aligned address on: groups of eight rows 1024 bytes apart, swizzle of 128.
__device__ __forceinline__ uint64_t operand_descriptor(uint32_t address) {
  return static_cast<uint64_t>((address & 0x3FFFF) >> 4) | (1ull << 16) | (64ull << 32) |
         (1ull << 62);
}

// The second operand whose product runs along its rows (MN-major): tiles of 64 columns,
// `tile_bytes` apart, rows of 128 swizzled bytes; the next 16 rows are 2,048 bytes on.
__device__ __forceinline__ uint64_t columns_descriptor(uint32_t address, uint32_t tile_bytes) {
  return uint64_t{(address & 0x3FFFF) >> 4} | uint64_t{tile_bytes >> 4} << 16 |
         uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

}  // namespace moela::cuda
