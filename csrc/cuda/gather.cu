// The rows that ask for logits: out [n_logits, d] = rows logit_rows of in [n_rows, d].
#include "cuda/rows.cuh"

namespace moela::cuda {
namespace {

constexpr int THREADS = 256;

__global__ void __launch_bounds__(THREADS)
    gather_kernel(Step step, int64_t d, const float* in, float* out) {
  wait_for_previous();
  allow_next();
  const int64_t row = blockIdx.x;
  if (row >= step.counts->n_logits) return;
  const float* from = in + step.logit_rows[row] * d;
  float* to = out + row * d;
  if (d % 4 == 0) {
    for (int64_t i = threadIdx.x; i < d / 4; i += THREADS) {
      reinterpret_cast<float4*>(to)[i] = reinterpret_cast<const float4*>(from)[i];
    }
  } else {
    for (int64_t i = threadIdx.x; i < d; i += THREADS) to[i] = from[i];
  }
}

}  // namespace

void gather(const Launch& at, int64_t d, const float* in, float* out) {
  if (at.bucket == 0) return;
  launch(at, gather_kernel, dim3(at.bucket), dim3(THREADS), 0, at.step, d, in, out);
}

}  // namespace moela::cuda
