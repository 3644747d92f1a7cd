// Reads of cache rows: see moela_pool_desc for the formats. A row is `row` (its elements in a
// page's layer) and, for types with scales, two scales: of the latent and of the key.
#pragma once

#include <cstdint>

#include "cuda/ops.h"
#include "cuda/stream_types.cuh"

namespace moela::cuda {

// An 8-bit scale: 0, or (8 + code % 8) * 2^(code / 8 - 27).
__device__ __forceinline__ float cache_scale(uint32_t code) {
  // Bits of an f32: code / 8 - 27 + 3 is the exponent of 1.xxx, code % 8 its upper bits.
  return code == 0 ? 0.f : __uint_as_float(((code >> 3) + 103) << 23 | (code & 7) << 20);
}

// Bytes of eight elements of a type at element i (a multiple of 8) of a row, in registers.
template <int DTYPE>
struct CacheEight {  // FP8, INT8
  uint2 bits;
  __device__ __forceinline__ void load(const char* row, int i) {
    bits = *reinterpret_cast<const uint2*>(row + i);
  }
};
template <>
struct CacheEight<MOELA_BF16> {
  uint4 bits;
  __device__ __forceinline__ void load(const char* row, int i) {
    bits = *reinterpret_cast<const uint4*>(row + 2 * i);
  }
};
template <>
struct CacheEight<MOELA_INT6> {
  uint2 bits;   // the eight bytes of low bits
  uint32_t up;  // those of upper bits
  __device__ __forceinline__ void load(const char* row, int i) {
    const uint32_t* group = reinterpret_cast<const uint32_t*>(row + i / 16 * 12);
    const int half = i / 8 % 2;
    bits.x = group[0] >> (4 * half) & 0x0f0f0f0f;
    bits.y = group[1] >> (4 * half) & 0x0f0f0f0f;
    up = group[2] >> (4 * half) & 0x0f0f0f0f;
  }
};

// As bf16, two a word, each value * scale rounded once.
template <int DTYPE>
__device__ __forceinline__ uint4 cache_bf16(const CacheEight<DTYPE>& eight, float scale) {
  if constexpr (DTYPE == MOELA_BF16) {
    return eight.bits;
  } else if constexpr (DTYPE == MOELA_FP8) {
    uint4 out;
    bf16_of_fp8(eight.bits.x, out.x, out.y);
    bf16_of_fp8(eight.bits.y, out.z, out.w);
    uint32_t* word = &out.x;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      word[j] = bf16_pair(bf16_value(word[j] & 0xffff) * scale,
                          __uint_as_float(word[j] & 0xffff0000u) * scale);
    }
    return out;
  } else {
    uint32_t q[2] = {eight.bits.x, eight.bits.y};
    int offset = 0;
    if constexpr (DTYPE == MOELA_INT6) {
      q[0] |= (eight.up & 0x03030303) << 4;
      q[1] |= (eight.up & 0x0c0c0c0c) << 2;
      offset = 32;
    }
    float value[8];
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const uint32_t byte = q[j / 4] >> (8 * (j % 4)) & 255;
      const int integer = DTYPE == MOELA_INT6 ? int(byte) : int(int8_t(byte));
      value[j] = float(integer - offset) * scale;
    }
    return {bf16_pair(value[0], value[1]), bf16_pair(value[2], value[3]),
            bf16_pair(value[4], value[5]), bf16_pair(value[6], value[7])};
  }
}

// One element as f32, any type: what paths without a fast form read. `scale` is 1 for F32 and BF16.
__device__ __forceinline__ float cache_element(int dtype, const char* row, int i, float scale) {
  switch (dtype) {
    case MOELA_F32:
      return reinterpret_cast<const float*>(row)[i];
    case MOELA_BF16:
      return bf16_value(reinterpret_cast<const uint16_t*>(row)[i]);
    case MOELA_FP8: {
      uint32_t low, high;
      bf16_of_fp8(static_cast<uint8_t>(row[i]), low, high);
      return bf16_value(low & 0xffff) * scale;
    }
    case MOELA_INT8:
      return float(static_cast<int8_t>(row[i])) * scale;
    default: {  // INT6
      const uint8_t* group = reinterpret_cast<const uint8_t*>(row) + i / 16 * 12;
      const int j = i % 16;
      const int low = group[j % 8] >> (j < 8 ? 0 : 4) & 15;
      const int up = group[8 + j % 4] >> (j / 4 * 2) & 3;
      return float(low + 16 * up - 32) * scale;
    }
  }
}

}  // namespace moela::cuda
