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
  problem.dense = count - 1;
  for (int32_t i = 0; i < count; i++) {
    problem.side[i] = wgmma_side(in, k, parts[i].out, parts[i].weight->rows);
    problem.side[i].residual = parts[i].residual;
    problem.side[i].rotation = parts[i].rotation;
  }
  bool extra = false;
  for (int32_t i = 0; i < count; i++) {
    extra = extra || parts[i].residual != nullptr || parts[i].rotation.table != nullptr;
  }
  const auto map = [&](uint32_t features, int i) { return weight_map(*parts[i].weight, features); };
  if (extra) {
    launch_wgmma<false, true>(at, problem, in.dtype, map);
  } else {
    launch_wgmma<false, false>(at, problem, in.dtype, map);
  }
}

void expert_down_wgmma(const Launch& at, int64_t top_k, int64_t experts, const int32_t* plan,
                       const WgmmaDown* parts, int32_t count) {
  WgmmaProblem problem{};
  problem.counts = at.step.counts;
  problem.plan = plan;
  problem.experts = static_cast<int32_t>(experts);
  problem.top_k = static_cast<int32_t>(top_k);
  problem.in_divisor = 1;
  problem.dense = count - 1;
  for (int32_t i = 0; i < count; i++) {
    const Weight& weight = *parts[i].weight;
    problem.side[i] = wgmma_side(parts[i].in, weight.cols, parts[i].out, weight.rows);
  }
  launch_wgmma<false, false>(at, problem, parts[0].in.dtype, [&](uint32_t features, int i) {
    return weight_map(*parts[i].weight, features);
  });
}

}  // namespace moela::cuda
