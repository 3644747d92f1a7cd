// Conversion of weights to the types with scales and back, on the host alone: loading uses it on
// every device, and so does examples/quantize.ts.
#pragma once

#include <cstdint>

#include "formats.h"

namespace moela {

// Rows that quantize_rows() takes together: 128 for FP8, whose scales they share, else 1.
inline int64_t quantize_block(int32_t dtype) { return dtype == MOELA_FP8 ? GROUP : 1; }

// Rows w [cols] (f32) to INT8 or INT4: `q` and `scales` are the row's own. Memory may be unaligned.
void quantize_int8_row(int64_t cols, const float* w, void* q, void* scales);
void quantize_int4_row(int64_t cols, const float* w, void* q, void* scales);
// At most 128 rows w [rows, cols] that share a row of scales.
void quantize_fp8_rows(int64_t rows, int64_t cols, const float* w, void* q, void* scales);

// Rows [first, first + rows) of a weight of `dtype` (FP8, INT8 or INT4), `data` and `scales` those
// of the whole weight. `first` and, but for the weight's last, `rows` are multiples of
// quantize_block().
void quantize_rows(int32_t dtype, int64_t first, int64_t rows, int64_t cols, const float* w,
                   void* data, void* scales);

// Row `row` of a weight of any type as f32 [cols].
void dequantize_row(int32_t dtype, int64_t row, int64_t cols, const void* data, const void* scales,
                    float* out);

}  // namespace moela
