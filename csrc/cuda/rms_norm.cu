// Root-mean-square norm: out [R, d] = x / sqrt(mean(x^2) + epsilon) * weight [d], x the first d
// elements of rows of `in` that lie `stride` apart; out F32 or BF16, or both. A block a row.
// Zhang and Sennrich 2019, Root Mean Square Layer Normalization, arXiv 1910.07467.
#include "cuda/row_norm.cuh"
#include "cuda/rows.cuh"

namespace moela::cuda {
namespace {

__global__ void __launch_bounds__(NORM_THREADS)
    rms_norm_kernel(Step step, int rows, int64_t d, int64_t stride, const float* in,
                    const char* weight, int weight_dtype, float epsilon, Tensor out,
                    uint16_t* twin) {
  __shared__ float room[8];
  wait_for_previous();
  allow_next();
  const int64_t row = step.begin(rows) + static_cast<int64_t>(blockIdx.x);
  if (row >= step.end(rows)) return;
  const float* x = in + row * stride;
  const float factor = row_norm_factor(x, d, epsilon, room);
  for (int64_t i = threadIdx.x; i < d; i += NORM_THREADS) {
    const float y = normed(x[i], factor, norm_weight(weight, weight_dtype, i));
    if (out.dtype == MOELA_BF16) {
      static_cast<uint16_t*>(out.data)[row * d + i] = bf16_bits(y);
    } else {
      static_cast<float*>(out.data)[row * d + i] = y;
      if (twin) twin[row * d + i] = bf16_bits(y);
    }
  }
}

// Rows of whole, aligned vectors of four.
__global__ void __launch_bounds__(NORM_THREADS)
    rms_norm_vectors(Step step, int rows, int64_t d, int64_t stride, const float* in,
                     const char* weight, int weight_dtype, float epsilon, Tensor out,
                     uint16_t* twin) {
  __shared__ float room[8];
  wait_for_previous();
  allow_next();
  const int64_t row = step.begin(rows) + static_cast<int64_t>(blockIdx.x);
  if (row >= step.end(rows)) return;
  const float* x = in + row * stride;
  const float factor = row_norm_factor(x, d, epsilon, room);
  uint16_t* rounded = out.dtype == MOELA_BF16 ? static_cast<uint16_t*>(out.data) : twin;
  for (int64_t i = 4 * threadIdx.x; i < d; i += 4 * NORM_THREADS) {
    const float4 v = *reinterpret_cast<const float4*>(x + i);
    const float4 y{normed(v.x, factor, norm_weight(weight, weight_dtype, i)),
                   normed(v.y, factor, norm_weight(weight, weight_dtype, i + 1)),
                   normed(v.z, factor, norm_weight(weight, weight_dtype, i + 2)),
                   normed(v.w, factor, norm_weight(weight, weight_dtype, i + 3))};
    if (out.dtype != MOELA_BF16) {
      *reinterpret_cast<float4*>(static_cast<float*>(out.data) + row * d + i) = y;
    }
    if (rounded) {
      const uint2 pairs{bf16_bits(y.x) | static_cast<uint32_t>(bf16_bits(y.y)) << 16,
                        bf16_bits(y.z) | static_cast<uint32_t>(bf16_bits(y.w)) << 16};
      *reinterpret_cast<uint2*>(rounded + row * d + i) = pairs;
    }
  }
}

}  // namespace

void rms_norm(const Launch& at, int32_t rows, int64_t d, int64_t stride, const float* in,
              const Weight& weight, float epsilon, Tensor out, uint16_t* twin) {
  const int32_t most = most_rows(at, rows);
  if (most == 0) return;
  const bool vectors = d % 4 == 0 && stride % 4 == 0 && reinterpret_cast<uintptr_t>(in) % 16 == 0;
  launch(at, vectors ? rms_norm_vectors : rms_norm_kernel, dim3(most), dim3(NORM_THREADS), 0,
         at.step, rows, d, stride, in, weight.data, weight.dtype, epsilon, out, twin);
}

}  // namespace moela::cuda
