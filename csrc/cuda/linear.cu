// out [R, n] = in [R, k] W^T (+ residual), W [n, k]: see ops.h. Rows on the absorbed path and
// logits take the stream family, rows on the projected path Hopper's where it has the type.
#include "cuda/fused.h"
#include "cuda/stream.h"
#include "cuda/wgmma.h"

namespace moela::cuda {

void linear(const Launch& at, int32_t rows, int64_t n, int64_t k, Tensor in, const Weight& weight,
            const float* residual, Tensor out) {
  StreamProduct p{};
  p.rows = rows;
  p.n = n;
  p.k = k;
  p.top_k = p.in_slots = p.experts = 1;
  p.in = in;
  p.weight = weight;
  p.residual = residual;
  p.out = absorbed_rows(out);
  const bool projected = rows == MOELA_ROWS_ALL || rows == MOELA_ROWS_PROJECTED;
  p.absorbed_only = projected && at.absorbed < at.bucket && at.hopper && wgmma_takes(at, weight);
  if (!p.absorbed_only) {
    const DecodeLinear one{weight, residual, static_cast<float*>(out.data)};
    if (rows != MOELA_ROWS_PROJECTED && p.out.dtype == MOELA_F32 &&
        decode_linear_fits(at, &one, 1)) {
      return decode_linear(at, rows, {in, nullptr, 0}, &one, 1);
    }
    return stream_product(at, p);
  }
  if (at.absorbed > 0 && rows == MOELA_ROWS_ALL) stream_product(at, p);
  const WgmmaLinear part{&weight, residual, out, {}};
  linear_wgmma(at, k, in, &part, 1);
}

}  // namespace moela::cuda
