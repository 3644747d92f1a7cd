// The rotations of each row: out [R, dr] = factor * [cos(position * f_i) | sin(position * f_i)],
// i < dr / 2, with inverse frequencies f [dr / 2] in f64. Angles are formed in double: at position
// 163839 a float angle would be off by 1e-2. RoPE: arXiv 2104.09864, section 3.2.
#include "cuda/rows.cuh"

namespace moela::cuda {
namespace {

constexpr int THREADS = 128;

__global__ void __launch_bounds__(THREADS)
    rope_table_kernel(Step step, int rows, int half, const double* frequencies, float factor,
                      float* out) {
  wait_for_previous();
  allow_next();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
  const int64_t row = step.begin(rows) + index / half;
  if (row >= step.end(rows)) return;
  const int i = static_cast<int>(index % half);
  double sine, cosine;
  sincos(step.positions[row] * frequencies[i], &sine, &cosine);
  float* to = out + row * 2 * half + i;
  to[0] = static_cast<float>(cosine * factor);
  to[half] = static_cast<float>(sine * factor);
}

}  // namespace

void rope_table(const Launch& at, int32_t rows, int64_t dr, const Weight& inverse_frequencies,
                float factor, float* out) {
  const int64_t count = most_rows(at, rows) * (dr / 2);
  if (count == 0) return;
  launch(at, rope_table_kernel, dim3(static_cast<unsigned>((count + THREADS - 1) / THREADS)),
         dim3(THREADS), 0, at.step, rows, static_cast<int>(dr / 2),
         reinterpret_cast<const double*>(inverse_frequencies.data), factor, out);
}

}  // namespace moela::cuda
