// Token embeddings: out [R, d] = row tokens[i] of the table [V, d] (F32 or BF16), as f32.
#include "cuda/rows.cuh"

namespace moela::cuda {
namespace {

constexpr int THREADS = 256;
constexpr int EACH = 4;  // columns of a thread

__global__ void __launch_bounds__(THREADS)
    embed_kernel(Step step, int rows, int64_t d, int dtype, const char* table, float* out) {
  wait_for_previous();
  allow_next();
  const int64_t row = step.begin(rows) + static_cast<int64_t>(blockIdx.x);
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * THREADS + threadIdx.x) * EACH;
  if (row >= step.end(rows) || column >= d) return;
  const int64_t from = step.tokens[row] * d + column;
  float* to = out + row * d + column;
  if (d % EACH == 0) {
    float4 x;
    if (dtype == MOELA_F32) {
      x = *reinterpret_cast<const float4*>(table + from * 4);
    } else {
      const uint2 pairs = *reinterpret_cast<const uint2*>(table + from * 2);
      x = {__uint_as_float(pairs.x << 16), __uint_as_float(pairs.x & 0xffff0000u),
           __uint_as_float(pairs.y << 16), __uint_as_float(pairs.y & 0xffff0000u)};
    }
    *reinterpret_cast<float4*>(to) = x;
    return;
  }
  for (int i = 0; i < EACH && column + i < d; i++) {
    to[i] = dtype == MOELA_F32 ? reinterpret_cast<const float*>(table)[from + i]
                               : bf16_value(reinterpret_cast<const uint16_t*>(table)[from + i]);
  }
}

}  // namespace

void embed(const Launch& at, int32_t rows, int64_t d, const Weight& table, float* out) {
  const int32_t most = most_rows(at, rows);
  if (most == 0) return;
  const dim3 grid(most, static_cast<unsigned>((d + THREADS * EACH - 1) / (THREADS * EACH)));
  launch(at, embed_kernel, grid, dim3(THREADS), 0, at.step, rows, d, table.dtype, table.data, out);
}

}  // namespace moela::cuda
