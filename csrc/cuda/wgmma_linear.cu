// LINEAR and EXPERT_DOWN of the projected rows: out [R, n] = in [R, k] W [n, k]^T (+ residual), one W
// or each slot's expert's.
#include "cuda/wgmma.h"
#include "cuda/wgmma_launch.cuh"

namespace moela::cuda {

namespace {

void product(const Launch& at, const Weight& weight, WgmmaProblem problem, bool f32,
             int64_t slots) {
  const int mb = f32 ? 1 : wgmma_blocks_of_64(at, problem.n, slots, problem.experts);
  const int cluster = getenv("C") ? atoi(getenv("C")) : 1;
  const CUtensorMap map = weight_map(weight, mb, cluster);
#ifdef WITH_F32
  if (f32) {
    launch_wgmma<1, false, true, 1>(at, map, problem, problem.n);
    return;
  }
#endif
  if (mb == 1 && cluster == 1) launch_wgmma<1, false, false, 1>(at, map, problem, problem.n);
}

}  // namespace

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
  product(at, weight, problem, in.dtype == MOELA_F32, at.bucket);
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
  product(at, down, problem, in.dtype == MOELA_F32, at.bucket * top_k);
}

}  // namespace moela::cuda
