// Root-mean-square norm: out [R, d] = x / sqrt(mean(x^2) + epsilon) * weight [d], x the first d
// elements of rows of `in` that lie `stride` apart.
// Zhang and Sennrich 2019, Root Mean Square Layer Normalization, arXiv 1910.07467.
#include "tasks.h"

namespace moela {

void rms_norm(Context& context, int32_t rows, int64_t d, int64_t stride, const float* in,
              const Weight& weight, float epsilon, float* out) {
  for_rows(context, rows, d, [&](int64_t row) {
    context.kernels.rms_norm(d, in + row * stride, weight.dtype, weight.parts[0], epsilon,
                             out + row * d);
  });
}

}  // namespace moela
