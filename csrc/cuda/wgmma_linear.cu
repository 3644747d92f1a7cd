// LINEAR and EXPERT_DOWN of the projected rows: out [R, n] = in [R, k] W [n, k]^T (+ residual), one
// W or each slot's expert's.
#include "cuda/wgmma.h"
#include "cuda/wgmma_launch.cuh"

namespace moela::cuda {

bool wgmma_takes(const Launch& at, const Weight& weight) {
  return at.hopper && wgmma_takes_matrix(weight) && weight.count <= WGMMA_EXPERTS;
}

void linear_wgmma(const Launch& at, int64_t n, int64_t k, Tensor in, const Weight& weight,
                  const float* residual, Tensor out) {
  WgmmaProblem problem{};
  problem.counts = at.step.counts;
  problem.experts = 1;
  problem.top_k = 1;
  problem.in_divisor = 1;
  problem.n = static_cast<int32_t>(n);
  problem.k = static_cast<int32_t>(k);
  problem.out_bf16 = out.dtype == MOELA_BF16;
  problem.in = in.data;
  problem.residual = residual;
  problem.out = out.data;
  launch_wgmma<false>(at, problem, in.dtype, n,
                      [&](uint32_t features) { return weight_map(weight, features); });
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
  problem.n = static_cast<int32_t>(d);
  problem.k = static_cast<int32_t>(intermediate);
  problem.out_bf16 = out.dtype == MOELA_BF16;
  problem.in = in.data;
  problem.out = out.data;
  launch_wgmma<false>(at, problem, in.dtype, d,
                      [&](uint32_t features) { return weight_map(down, features); });
}

}  // namespace moela::cuda
