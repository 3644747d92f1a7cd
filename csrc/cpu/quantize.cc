// Conversion of weights to INT8 and FP8, and of every type back to f32; INT4 has a file of its own.
#include "quantize.h"

#include <algorithm>
#include <cmath>

namespace moela {
namespace {

// Adding and subtracting it rounds |x| < 2^22 to an integer, ties to even.
constexpr float TO_INTEGER = 0x1.8p23f;

float largest_magnitude(int64_t n, const float* x) {
  float largest = 0;
  for (int64_t i = 0; i < n; i++) largest = std::max(largest, std::fabs(x[i]));
  return largest;
}

// The smallest power of two that is at least x >= 0, but for subnormals: then value * scale is
// exact in bf16, which kernels on tensor cores take.
float power_of_two(float x) { return float_of_bits((bits_of_float(x) + 0x7fffff) & 0x7f800000); }

}  // namespace

void quantize_int8_row(int64_t cols, const float* w, void* q, void* scales) {
  int8_t* out = static_cast<int8_t*>(q);
  for (int64_t begin = 0; begin < cols; begin += GROUP) {
    const int64_t n = std::min(GROUP, cols - begin);
    const float* from = w + begin;
    const uint16_t half = f32_to_bf16(largest_magnitude(n, from) / 127);
    memcpy(static_cast<char*>(scales) + begin / GROUP * 2, &half, 2);
    const float scale = bf16_to_f32(half);
    // Where the scale was rounded down the largest are cut: that costs them less than a step.
    const float inverse = scale > 0x1p-120f ? 1 / scale : 0;
    for (int64_t i = 0; i < n; i++) {
      float x = from[i] * inverse;
      x = x > -127 ? x : -127;
      x = x < 127 ? x : 127;
      out[begin + i] = static_cast<int8_t>((x + TO_INTEGER) - TO_INTEGER);
    }
  }
}

void quantize_fp8_rows(int64_t rows, int64_t cols, const float* w, void* q, void* scales) {
  uint8_t* out = static_cast<uint8_t*>(q);
  for (int64_t begin = 0; begin < cols; begin += GROUP) {
    const int64_t n = std::min(GROUP, cols - begin);
    float largest = 0;
    for (int64_t row = 0; row < rows; row++) {
      largest = std::max(largest, largest_magnitude(n, w + row * cols + begin));
    }
    const float scale = power_of_two(largest / 448);
    memcpy(static_cast<char*>(scales) + begin / GROUP * 4, &scale, 4);
    const float inverse = scale > 0x1p-120f ? 1 / scale : 0;
    for (int64_t row = 0; row < rows; row++) {
      const int64_t at = row * cols + begin;
      for (int64_t i = 0; i < n; i++) out[at + i] = f32_to_fp8(w[at + i] * inverse);
    }
  }
}

void quantize_rows(int32_t dtype, int64_t first, int64_t rows, int64_t cols, const float* w,
                   void* data, void* scales) {
  char* q = static_cast<char*>(data) + first * weight_row_bytes(dtype, cols);
  const int64_t scale_row = dtype == MOELA_FP8 ? first / GROUP : first;
  char* s = static_cast<char*>(scales) + scale_row * scale_row_bytes(dtype, cols);
  if (dtype == MOELA_FP8) return quantize_fp8_rows(rows, cols, w, q, s);
  const auto quantize = dtype == MOELA_INT8 ? quantize_int8_row : quantize_int4_row;
  for (int64_t row = 0; row < rows; row++) {
    quantize(cols, w + row * cols, q + row * weight_row_bytes(dtype, cols),
             s + row * scale_row_bytes(dtype, cols));
  }
}

void dequantize_row(int32_t dtype, int64_t row, int64_t cols, const void* data, const void* scales,
                    float* out) {
  const char* q = static_cast<const char*>(data) + row * weight_row_bytes(dtype, cols);
  const char* s = static_cast<const char*>(scales);
  if (weight_has_scales(dtype)) {
    s += (dtype == MOELA_FP8 ? row / GROUP : row) * scale_row_bytes(dtype, cols);
  }
  for (int64_t i = 0; i < cols; i++) {
    switch (dtype) {
      case MOELA_F32:
        out[i] = load_at<float>(q, i);
        break;
      case MOELA_BF16:
        out[i] = bf16_to_f32(load_at<uint16_t>(q, i));
        break;
      case MOELA_F16:
        out[i] = f16_to_f32(load_at<uint16_t>(q, i));
        break;
      case MOELA_FP8:
        out[i] = fp8_to_f32(static_cast<uint8_t>(q[i])) * load_at<float>(s, i / GROUP);
        break;
      case MOELA_INT8:
        out[i] = static_cast<int8_t>(q[i]) * bf16_to_f32(load_at<uint16_t>(s, i / GROUP));
        break;
      case MOELA_INT4: {
        const uint32_t word = load_at<uint32_t>(s, i / GROUP);
        const int byte = static_cast<uint8_t>(q[i / 64 * 32 + i % 32]);
        const int nibble = i % 64 < 32 ? byte & 15 : byte >> 4;
        const int factor = word >> (16 + i % GROUP / SUBGROUP * 4) & 15;
        out[i] = (nibble - 8) * factor * bf16_to_f32(static_cast<uint16_t>(word));
        break;
      }
    }
  }
}

}  // namespace moela
