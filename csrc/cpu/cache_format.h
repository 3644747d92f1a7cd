// Entries of a cache in the types with scales (FP8, INT8, INT6), a page at a time.
#pragma once

#include <cstdint>

#include "cpu/cache_layout.h"
#include "cpu/ops.h"

namespace moela {

inline bool has_scales(int32_t dtype) { return dtype != MOELA_F32 && dtype != MOELA_BF16; }

// Writes entry [r + dr] to `row` (PagePool::row_bytes()) and its two codes, of the latent [0, r)
// and of the key [r, r + dr).
void encode_entry(int32_t dtype, int64_t r, int64_t dr, const float* entry, uint8_t* row,
                  uint8_t* codes);

// The first n entries of a page's layer as f32 [n, r + dr].
void decode_entries(const Kernels& kernels, const PagePool& pool, int32_t page, int32_t layer,
                    int64_t n, float* entries);

// A row as f32 [r + dr]: reference, and AVX2 where both widths are multiples of 16.
void decode_entry(int32_t dtype, int64_t r, int64_t dr, const uint8_t* row, float scale,
                  float key_scale, float* out);
#if defined(__x86_64__)
void decode_entry_avx2(int32_t dtype, int64_t r, int64_t dr, const uint8_t* row, float scale,
                       float key_scale, float* out);
#endif

}  // namespace moela
