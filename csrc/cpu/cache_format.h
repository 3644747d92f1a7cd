// How a token's entry lies in a page of the types with scales (FP8, INT8, INT6): see
// moela_pool_desc.
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/ops.h"

namespace moela {

// The scale of a code: 0, or three bits of mantissa and five of exponent.
inline float scale_of_code(uint8_t code) {
  return code == 0 ? 0 : std::ldexp(static_cast<float>(8 + code % 8), code / 8 - 27);
}

// The code of the smallest scale with max <= scale * q; the largest when there is none.
uint8_t code_of_scale(float max, float q);

inline bool has_scales(int32_t dtype) { return dtype != MOELA_F32 && dtype != MOELA_BF16; }

// Writes entry [r + dr] to `row` (PagePool::row_bytes()) and its two codes, of the latent [0, r)
// and of the key [r, r + dr).
void encode_entry(int32_t dtype, int64_t r, int64_t dr, const float* entry, uint8_t* row,
                  uint8_t* codes);

// The first n entries of a page's layer as f32 [n, r + dr].
void decode_entries(const Kernels& kernels, const PagePool& pool, int32_t page, int32_t layer,
                    int64_t n, float* entries);

// Elements [begin, end) of a row, each times the scale: reference, and AVX2 where the bounds are
// multiples of 16.
void decode_part(int32_t dtype, const uint8_t* row, int64_t begin, int64_t end, float scale,
                 float* out);
#if defined(__x86_64__)
void decode_part_avx2(int32_t dtype, const uint8_t* row, int64_t begin, int64_t end, float scale,
                      float* out);
#endif

}  // namespace moela
