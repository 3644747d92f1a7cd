// A linear layer: out [R, n] = in [R, k] W^T (+ residual [R, n], after the whole sum), W [n, k].
// `residual` may be `out`.
#include <cstring>

#include "products.h"

namespace moela {
namespace {

// Few rows: time goes into reading W, once and in small tiles, so that no thread waits long for
// the last one. Many rows: blocks of them share a tile of W while it is in the cache.
constexpr int64_t FEW_ROWS = 8;
constexpr int64_t FEW_ROWS_WIDEST = 64;
constexpr int64_t ROW_BLOCK = 96;
constexpr int64_t WIDEST = 256;
static_assert(ROW_BLOCK <= PackedBlocks::MAX_ROWS, "blocks are packed");

}  // namespace

void linear(Context& context, int32_t rows, int64_t n, int64_t k, const float* in,
            const Weight& weight, const float* residual, float* out) {
  const int64_t begin = context.step.begin(rows), end = context.step.end(rows);
  if (begin == end) return;
  const Kernels& kernels = context.kernels;
  const int64_t block = block_rows_of(end - begin, ROW_BLOCK);
  const int64_t blocks = ceil_div(end - begin, block);
  const int64_t width =
      tile_width(context, n, blocks, block * k, block <= FEW_ROWS ? FEW_ROWS_WIDEST : WIDEST);
  const bool packed = packs(kernels, weight.dtype);
  std::vector<int64_t> counts;
  for (int64_t row = begin; row < end; row += block) counts.push_back(std::min(block, end - row));
  PackedBlocks rows_packed(kernels, weight.dtype, k, counts);
  if (packed) {
    rows_packed.pack(context, context.scratch[0].get(rows_packed.floats()),
                     [&](int64_t b, int64_t i) { return in + (begin + b * block + i) * k; });
  }
  context.threads.parallel_for(ceil_div(n, width) * blocks, [&](int64_t task, int) {
    if (cancelled(context)) return;
    // Consecutive tasks use one tile of W.
    const int64_t row = begin + task % blocks * block;
    const int64_t column = task / blocks * width;
    const int64_t task_rows = std::min(block, end - row);
    const int64_t columns = std::min(width, n - column);
    float* to = out + row * n + column;
    if (residual && residual != out) {
      const float* from = residual + row * n + column;
      for (int64_t i = 0; i < task_rows; i++) {
        memcpy(to + i * n, from + i * n, columns * sizeof(float));
      }
    }
    const WeightRows w = weight_rows(weight, 0, column);
    if (packed) {
      kernels.gemm_packed(w, task_rows, columns, rows_packed.block(task % blocks), to, n,
                          residual != nullptr);
    } else {
      product_nt(kernels, w, task_rows, columns, in + row * k, k, to, n, residual != nullptr);
    }
  });
}

}  // namespace moela
