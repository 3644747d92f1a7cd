// Reads of cache rows: see moela_pool_desc and cpu/cache_layout.h for the formats. A row is `row`
// (its elements in a page's layer) and, for types with scales, two scales: of the latent and of the
// key.
#pragma once

#include <cstdint>

#include "cpu/cache_layout.h"
#include "cuda/ops.h"
#include "cuda/stream_types.cuh"

namespace moela::cuda {

// What elements of a row are: latents, those of INT6 that have five bits, or the key.
enum class CachePart { LATENT, SHORT, KEY };
__device__ __forceinline__ CachePart cache_part(int dtype, int i, int r, int dr) {
  return i >= r                                             ? CachePart::KEY
         : dtype == MOELA_INT6 && i >= int6_short_at(r, dr) ? CachePart::SHORT
                                                            : CachePart::LATENT;
}

// Bytes of eight elements of a type at element i (a multiple of 8) of a row, in registers.
template <int DTYPE>
struct CacheEight {  // FP8, INT8
  uint2 bits;
  __device__ __forceinline__ void load(const char* row, int i, CachePart, int, int) {
    bits = *reinterpret_cast<const uint2*>(row + i);
  }
};
template <>
struct CacheEight<MOELA_BF16> {
  uint4 bits;
  __device__ __forceinline__ void load(const char* row, int i, CachePart, int, int) {
    bits = *reinterpret_cast<const uint4*>(row + 2 * i);
  }
};
template <>
struct CacheEight<MOELA_INT6> {
  Int6Eight bits;
  __device__ __forceinline__ void load(const char* row, int i, CachePart part, int r, int dr) {
    if (part == CachePart::KEY) {
      const uint2 key =
          *reinterpret_cast<const uint2*>(row + cache_key_at(MOELA_INT6, r, dr) + (i - r));
      bits.words[0] = key.x;
      bits.words[1] = key.y;
    } else {
      bits = int6_load(reinterpret_cast<const uint32_t*>(row), i, int6_short_at(r, dr),
                       part == CachePart::SHORT);
    }
  }
};

// Eight bytes as bf16, two a word: each less `offset`, as an integer, times the scale.
template <bool SIGNED>
__device__ __forceinline__ uint4 bf16_of_bytes(uint32_t low, uint32_t high, int offset,
                                               float scale) {
  float value[8];
#pragma unroll
  for (int j = 0; j < 8; j++) {
    const uint32_t byte = (j < 4 ? low : high) >> (8 * (j % 4)) & 255;
    value[j] = float((SIGNED ? int(int8_t(byte)) : int(byte)) - offset) * scale;
  }
  return {bf16_pair(value[0], value[1]), bf16_pair(value[2], value[3]),
          bf16_pair(value[4], value[5]), bf16_pair(value[6], value[7])};
}

// What load() of the same arguments read as bf16, two a word, each value * scale rounded once.
template <int DTYPE>
__device__ __forceinline__ uint4 cache_bf16(const CacheEight<DTYPE>& eight, float scale, int i,
                                            CachePart part, int r, int dr) {
  if constexpr (DTYPE == MOELA_BF16) {
    return eight.bits;
  } else if constexpr (DTYPE == MOELA_INT6) {
    if (part == CachePart::KEY) {
      return bf16_of_bytes<true>(eight.bits.words[0], eight.bits.words[1], 0, scale);
    }
    uint32_t low, high;
    int6_codes(eight.bits, i, int6_short_at(r, dr), part == CachePart::SHORT, low, high);
    return bf16_of_bytes<false>(low, high, 32, scale);
  } else {
    if (DTYPE == MOELA_INT8 || part == CachePart::KEY) {
      return bf16_of_bytes<true>(eight.bits.x, eight.bits.y, 0, scale);
    }
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
  }
}

// One element as f32, any type: what paths without a fast form read. `scale` is that of its part,
// 1 for F32 and BF16.
__device__ __forceinline__ float cache_element(int dtype, const char* row, int i, float scale,
                                               int r, int dr) {
  if (dtype == MOELA_F32) return reinterpret_cast<const float*>(row)[i];
  if (dtype == MOELA_BF16) return bf16_value(reinterpret_cast<const uint16_t*>(row)[i]);
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(row);
  if (i >= r) {
    return float(static_cast<int8_t>(bytes[cache_key_at(dtype, r, dr) + (i - r)])) * scale;
  }
  switch (dtype) {
    case MOELA_FP8: {
      uint32_t low, high;
      bf16_of_fp8(bytes[i], low, high);
      return bf16_value(low & 0xffff) * scale;
    }
    case MOELA_INT8:
      return float(static_cast<int8_t>(bytes[i])) * scale;
    default:  // INT6
      return float(int6_get(bytes, int6_place(i, int6_short_at(r, dr)))) * scale;
  }
}

}  // namespace moela::cuda
