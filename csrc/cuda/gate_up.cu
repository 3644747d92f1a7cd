// The first half of SwiGLU, grouped by expert: see ops.h and cpu/gate_up.cc for the definition.
// Shazeer 2020, GLU Variants Improve Transformer, arXiv 2002.05202, and DeepSeekMoE,
// arXiv 2401.06066, eq. 3.
#include "cuda/stream.h"
#include "cuda/wgmma.h"

namespace moela::cuda {

void gate_up(const Launch& at, int32_t rows, int64_t intermediate, int64_t d, int64_t top_k,
             int64_t experts, Tensor in, const int32_t* plan, const Weight& gate, const Weight& up,
             Tensor out) {
  StreamProduct p{};
  p.rows = rows;
  p.n = intermediate;
  p.k = d;
  p.top_k = p.in_slots = plan ? top_k : 1;
  p.experts = experts;
  p.plan = plan;
  p.in = in;
  p.weight = gate;
  p.up = up;
  p.out = out;
  const bool projected = rows == MOELA_ROWS_ALL || rows == MOELA_ROWS_PROJECTED;
  p.absorbed_only = projected && at.absorbed < at.bucket && at.hopper && wgmma_takes(at, gate, up);
  if (!p.absorbed_only) return stream_product(at, p);
  if (at.absorbed > 0 && rows == MOELA_ROWS_ALL) stream_product(at, p);
  const WgmmaGated part{&gate, &up, out};
  gate_up_wgmma(at, d, top_k, experts, in, plan, &part, 1);
}

}  // namespace moela::cuda
