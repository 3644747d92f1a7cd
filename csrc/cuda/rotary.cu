// Rotary embedding in place on x [R, heads, head_dim]: elements [offset, offset + dr) of each head
// are rotated by table [R, dr], pairs (2i, 2i + 1) as the checkpoints lay them out. A thread a
// pair. arXiv 2104.09864, eq. 34.
#include "cuda/rows.cuh"

namespace moela::cuda {
namespace {

constexpr int THREADS = 256;

__global__ void __launch_bounds__(THREADS)
    rotary_kernel(Step step, int rows, int heads, int head_dim, int offset, int half,
                  const float* table, float* in_out) {
  wait_for_previous();
  allow_next();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
  const int64_t row = step.begin(rows) + index / (heads * half);
  if (row >= step.end(rows)) return;
  const int head = static_cast<int>(index % (heads * half)) / half;
  const int i = static_cast<int>(index % half);
  const float cosine = table[row * 2 * half + i], sine = table[row * 2 * half + half + i];
  float* x = in_out + (row * heads + head) * head_dim + offset + 2 * i;
  const float2 y = rotate_pair(x[0], x[1], cosine, sine);
  x[0] = y.x;
  x[1] = y.y;
}

}  // namespace

void rotary(const Launch& at, int32_t rows, int64_t heads, int64_t head_dim, int64_t offset,
            int64_t dr, const float* table, float* in_out) {
  const int64_t count = most_rows(at, rows) * heads * (dr / 2);
  if (count == 0) return;
  launch(at, rotary_kernel, dim3(static_cast<unsigned>((count + THREADS - 1) / THREADS)),
         dim3(THREADS), 0, at.step, rows, static_cast<int>(heads), static_cast<int>(head_dim),
         static_cast<int>(offset), static_cast<int>(dr / 2), table, in_out);
}

}  // namespace moela::cuda
