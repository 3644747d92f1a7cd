// GATE_UP of the projected rows: out [R k, I] = silu(x G_e^T) * (x U_e^T), x the row slot / k of in
// [R, d] and e the slot's expert; without a plan all rows through part 0.
#include "cuda/wgmma.h"
#include "cuda/wgmma_launch.cuh"

namespace moela::cuda {

bool wgmma_takes(const Launch& at, const Weight& gate, const Weight& up) {
  const int64_t apart = gate.data < up.data ? up.data - gate.data : gate.data - up.data;
  return at.hopper && wgmma_takes_matrix(gate) && wgmma_takes_matrix(up) &&
         gate.count <= WGMMA_EXPERTS && part_stride(gate) == part_stride(up) && apart > 0 &&
         apart < (int64_t{1} << 40);
}

void gate_up_wgmma(const Launch& at, int64_t intermediate, int64_t d, int64_t top_k,
                   int64_t experts, Tensor in, const int32_t* plan, const Weight& gate,
                   const Weight& up, Tensor out) {
  WgmmaProblem problem{};
  problem.counts = at.step.counts;
  problem.plan = plan;
  problem.experts = plan == nullptr ? 1 : static_cast<int32_t>(experts);
  problem.top_k = plan == nullptr ? 1 : static_cast<int32_t>(top_k);
  problem.in_divisor = problem.top_k;
  problem.k = static_cast<int32_t>(d);
  problem.up_first = up.data < gate.data;
  problem.in = in.data;
  problem.out[0] = wgmma_out(out, intermediate);
  const Weight& low = problem.up_first ? up : gate;
  const Weight& high = problem.up_first ? gate : up;
  launch_wgmma<true>(at, problem, in.dtype,
                     [&](uint32_t features, int) { return pair_map(low, high, features); });
}

}  // namespace moela::cuda
