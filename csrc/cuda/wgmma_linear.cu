// LINEAR and EXPERT_DOWN of the projected rows: out [R, n] = in [R, k] W [n, k]^T (+ residual), one
// W or each slot's expert's.
#include "cuda/wgmma.h"
#include "cuda/wgmma_launch.cuh"

namespace moela::cuda {

bool wgmma_takes(const Launch& at, const Weight& weight) {
  return at.hopper && wgmma_takes_matrix(weight) && weight.count <= WGMMA_EXPERTS;
}

void linear_wgmma(const Launch& at, int64_t k, Tensor in, const WgmmaLinear* parts, int32_t count) {
  WgmmaProblem problem{};
  problem.counts = at.step.counts;
  problem.experts = 1;
  problem.top_k = 1;
  problem.in_divisor = 1;
  problem.k = static_cast<int32_t>(k);
  problem.in = in.data;
  for (int32_t i = 0; i < count; i++) {
    problem.out[i] = wgmma_out(parts[i].out, parts[i].weight->rows);
    problem.out[i].residual = parts[i].residual;
    problem.out[i].rotation = parts[i].rotation;
  }
  launch_wgmma<false>(at, problem, in.dtype, [&](uint32_t features, int i) {
    return weight_map(*parts[i].weight, features);
  });
}

void expert_down_wgmma(const Launch& at, int64_t d, int64_t intermediate, int64_t top_k,
                       int64_t experts, Tensor in, const int32_t* plan, const Weight& down,
                       Tensor out) {
  WgmmaProblem problem{};
  problem.counts = at.step.counts;
  problem.plan = plan;
  problem.experts = static_cast<int32_t>(experts);
  problem.top_k = static_cast<int32_t>(top_k);
  problem.in_divisor = 1;
  problem.k = static_cast<int32_t>(intermediate);
  problem.in = in.data;
  problem.out[0] = wgmma_out(out, d);
  launch_wgmma<false>(at, problem, in.dtype,
                      [&](uint32_t features, int) { return weight_map(down, features); });
}

}  // namespace moela::cuda
