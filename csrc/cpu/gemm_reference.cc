// Products with quantized weights as plain loops.
#include <algorithm>
#include <cmath>

#include "integer_rows.h"
#include "quantize.h"
#include "reference.h"

namespace moela {
namespace {

// Element [row, col] of a weight of FP8 or INT8 as f32.
float value_at(const WeightRows& b, int64_t row, int64_t col) {
  const int64_t row_of_scales = b.dtype == MOELA_FP8 ? row / GROUP : row;
  const char* scales = b.scales + row_of_scales * scale_row_bytes(b.dtype, b.cols);
  const uint8_t byte = static_cast<uint8_t>(b.data[row * b.cols + col]);
  if (b.dtype == MOELA_FP8) return fp8_to_f32(byte) * load_at<float>(scales, col / GROUP);
  return static_cast<int8_t>(byte) * bf16_to_f32(load_at<uint16_t>(scales, col / GROUP));
}

// The sum of a group of INT8 or INT4 times q, and the weight's scale.
struct GroupSum {
  int32_t sum;
  float scale;
};
GroupSum group_sum(const WeightRows& b, int64_t row, int64_t group, const int8_t* q) {
  const char* w = b.data + row * weight_row_bytes(b.dtype, b.cols);
  const char* scales = b.scales + row * scale_row_bytes(b.dtype, b.cols);
  const int64_t begin = group * GROUP, end = std::min(begin + GROUP, b.cols);
  int32_t sum = 0;
  if (b.dtype == MOELA_INT8) {
    for (int64_t l = begin; l < end; l++) sum += static_cast<int8_t>(w[l]) * q[l - begin];
    return {sum, bf16_to_f32(load_at<uint16_t>(scales, group))};
  }
  const uint32_t word = load_at<uint32_t>(scales, group);
  for (int64_t l = begin; l < end; l++) {
    const int byte = static_cast<uint8_t>(w[l / 64 * 32 + l % 32]);
    const int nibble = l % 64 < 32 ? byte & 15 : byte >> 4;
    const int factor = word >> (16 + (l - begin) / SUBGROUP * 4) & 15;
    sum += (nibble - 8) * factor * q[l - begin];
  }
  return {sum, bf16_to_f32(static_cast<uint16_t>(word))};
}

}  // namespace

void gemm_nt_scaled_reference(const WeightRows& b, int64_t m, int64_t n, const float* a,
                              int64_t lda, float* c, int64_t ldc, bool add) {
  for (int64_t i = 0; i < m; i++) {
    for (int64_t j = 0; j < n; j++) {
      float sum = 0;
      for (int64_t l = 0; l < b.cols; l++) sum += a[i * lda + l] * value_at(b, b.first + j, l);
      c[i * ldc + j] = add ? c[i * ldc + j] + sum : sum;
    }
  }
}

void gemm_nn_scaled_reference(const WeightRows& b, int64_t m, int64_t k, const float* a,
                              int64_t lda, float* c, int64_t ldc, bool add) {
  for (int64_t i = 0; i < m; i++) {
    for (int64_t j = 0; j < b.cols; j++) {
      float sum = add ? c[i * ldc + j] : 0;
      for (int64_t l = 0; l < k; l++) sum += a[i * lda + l] * value_at(b, b.first + l, j);
      c[i * ldc + j] = sum;
    }
  }
}

int64_t packed_bytes_reference(int32_t dtype, int64_t m, int64_t k) {
  if (dtype != MOELA_INT8 && dtype != MOELA_INT4) return 0;
  return m * IntegerRow(k, false).stride();
}

void pack_reference(int32_t, int64_t m, int64_t k, const float* const* rows, char* out) {
  const IntegerRow layout(k, false);
  for (int64_t i = 0; i < m; i++) {
    char* row = out + i * layout.stride();
    int8_t* q = reinterpret_cast<int8_t*>(row);
    memset(q, 0, layout.q_bytes);
    for (int64_t g = 0; g < layout.groups; g++) {
      const int64_t begin = g * GROUP, end = std::min(begin + GROUP, k);
      uint32_t largest = 0;
      for (int64_t l = begin; l < end; l++) {
        largest = std::max(largest, bits_of_float(rows[i][l]) & 0x7fffffff);
      }
      const GroupScale scale = group_scale(largest);
      layout.scales(row)[g] = scale.scale;
      if (scale.zero) continue;
      for (int64_t l = begin; l < end; l++) {
        q[l] = static_cast<int8_t>(std::nearbyint(rows[i][l] * scale.factor));
      }
    }
  }
}

void gemm_packed_reference(const WeightRows& b, int64_t m, int64_t n, const char* packed, float* c,
                           int64_t ldc, bool add) {
  const IntegerRow layout(b.cols, false);
  for (int64_t i = 0; i < m; i++) {
    const char* row = packed + i * layout.stride();
    const int8_t* q = reinterpret_cast<const int8_t*>(row);
    for (int64_t j = 0; j < n; j++) {
      float y = 0;
      for (int64_t g = 0; g < layout.groups; g++) {
        const GroupSum group = group_sum(b, b.first + j, g, q + g * GROUP);
        y = std::fma(static_cast<float>(group.sum), layout.scales(row)[g] * group.scale, y);
      }
      c[i * ldc + j] = add ? c[i * ldc + j] + y : y;
    }
  }
}

}  // namespace moela
