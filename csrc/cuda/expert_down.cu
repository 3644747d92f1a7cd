// The second half of SwiGLU, grouped by expert: see ops.h and cpu/expert_down.cc for the
// definition. DeepSeekMoE, arXiv 2401.06066, eq. 3.
#include "cuda/stream.h"
#include "cuda/wgmma.h"

namespace moela::cuda {

void expert_down(const Launch& at, int32_t rows, int64_t d, int64_t intermediate, int64_t top_k,
                 int64_t experts, Tensor in, const int32_t* plan, const Weight& down, Tensor out) {
  StreamProduct p{};
  p.rows = rows;
  p.n = d;
  p.k = intermediate;
  p.top_k = top_k;
  p.in_slots = 1;
  p.experts = experts;
  p.plan = plan;
  p.in = in;
  p.weight = down;
  p.out = absorbed_rows(out);
  const bool projected = rows == MOELA_ROWS_ALL || rows == MOELA_ROWS_PROJECTED;
  p.absorbed_only = projected && at.absorbed < at.bucket && at.hopper && wgmma_takes(at, down);
  if (!p.absorbed_only) return stream_product(at, p);
  if (at.absorbed > 0 && rows == MOELA_ROWS_ALL) stream_product(at, p);
  const WgmmaDown part{&down, in, out};
  expert_down_wgmma(at, top_k, experts, plan, &part, 1);
}

}  // namespace moela::cuda
