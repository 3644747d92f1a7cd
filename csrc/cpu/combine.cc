// What leaves a mixture-of-experts layer: out [R, d] = residual + (sum over rank of
// weights [R, k] * in [R, k, d], ascending, + shared [R, d]). `shared` and `residual` may be NULL,
// and each may be `out`. DeepSeekMoE, arXiv 2401.06066, eq. 9 to 11.
#include "tasks.h"

namespace moela {
namespace {

// Columns summed at a time: they stay in the first-level cache from rank to rank.
constexpr int64_t COLUMNS = 256;

}  // namespace

void combine(Context& context, int32_t rows, int64_t d, int64_t top_k, const float* in,
             const float* weights, const float* shared, const float* residual, float* out) {
  for_rows(context, rows, d * (top_k + 2), [&](int64_t row) {
    const float* weight = weights + row * top_k;
    for (int64_t column = 0; column < d; column += COLUMNS) {
      const int64_t columns = std::min(COLUMNS, d - column);
      float sum[COLUMNS];
      for (int64_t rank = 0; rank < top_k; rank++) {
        const float factor = weight[rank];
        const float* from = in + (row * top_k + rank) * d + column;
        for (int64_t j = 0; j < columns; j++) {
          sum[j] = rank == 0 ? factor * from[j] : sum[j] + factor * from[j];
        }
      }
      const int64_t at = row * d + column;
      if (shared) {
        for (int64_t j = 0; j < columns; j++) sum[j] += shared[at + j];
      }
      if (residual) {
        for (int64_t j = 0; j < columns; j++) sum[j] += residual[at + j];
      }
      for (int64_t j = 0; j < columns; j++) out[at + j] = sum[j];
    }
  });
}

}  // namespace moela
