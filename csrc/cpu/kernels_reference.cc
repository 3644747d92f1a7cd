// The kernels as plain loops: what every other set is measured against, and what runs on processors
// without one. f32 sums in ascending order of k.
#include <cmath>
#include <cstring>
#include <limits>

#include "formats.h"
#include "reference.h"

namespace moela {
namespace {

// Element i of an array that may be unaligned.
float at(int32_t dtype, const void* data, int64_t i) {
  return dtype == MOELA_BF16 ? bf16_to_f32(load_at<uint16_t>(data, i)) : load_at<float>(data, i);
}

void gemm_nt(int32_t b_dtype, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
             const void* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  for (int64_t i = 0; i < m; i++) {
    for (int64_t j = 0; j < n; j++) {
      float sum = 0;
      for (int64_t l = 0; l < k; l++) sum += a[i * lda + l] * at(b_dtype, b, j * ldb + l);
      c[i * ldc + j] = add ? c[i * ldc + j] + sum : sum;
    }
  }
}

void gemm_nn(int32_t b_dtype, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
             const void* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  for (int64_t i = 0; i < m; i++) {
    for (int64_t j = 0; j < n; j++) {
      float sum = add ? c[i * ldc + j] : 0;
      for (int64_t l = 0; l < k; l++) sum += a[i * lda + l] * at(b_dtype, b, l * ldb + j);
      c[i * ldc + j] = sum;
    }
  }
}

void rms_norm(int64_t n, const float* x, int32_t w_dtype, const void* weight, float epsilon,
              float* y) {
  double squares = 0;
  for (int64_t i = 0; i < n; i++) squares += static_cast<double>(x[i]) * x[i];
  const float factor = static_cast<float>(1 / std::sqrt(squares / n + epsilon));
  for (int64_t i = 0; i < n; i++) y[i] = x[i] * factor * at(w_dtype, weight, i);
}

void silu_mul(int64_t n, const float* gate, const float* up, float* y) {
  for (int64_t i = 0; i < n; i++) y[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
}

void scale(int64_t n, float factor, float* x) {
  for (int64_t i = 0; i < n; i++) x[i] *= factor;
}

float max(int64_t n, const float* x) {
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; i++) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

float exp_sum(int64_t n, float shift, float* x) {
  float sum = 0;
  for (int64_t i = 0; i < n; i++) sum += x[i] = std::exp(x[i] - shift);
  return sum;
}

void store(int32_t dtype, int64_t n, const float* from, void* to) {
  if (dtype == MOELA_F32) {
    memcpy(to, from, n * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < n; i++) {
    const uint16_t half = f32_to_bf16(from[i]);
    memcpy(static_cast<char*>(to) + i * 2, &half, sizeof half);
  }
}

void load(int32_t dtype, int64_t n, const void* from, float* to) {
  for (int64_t i = 0; i < n; i++) to[i] = at(dtype, from, i);
}

}  // namespace

const Kernels& reference_kernels() {
  static const Kernels kernels{MOELA_KERNELS_REFERENCE,
                               gemm_nt,
                               gemm_nn,
                               gemm_nt_scaled_reference,
                               gemm_nn_scaled_reference,
                               packed_bytes_reference,
                               pack_reference,
                               gemm_packed_reference,
                               rms_norm,
                               silu_mul,
                               scale,
                               max,
                               exp_sum,
                               store,
                               load,
                               nullptr};
  return kernels;
}

}  // namespace moela
