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

namespace {

// Both matrices, the one that lies lower in memory first.
CUtensorMap gated_map(const WgmmaGated& part, uint32_t features) {
  const Weight &gate = *part.gate, &up = *part.up;
  return up.data < gate.data ? pair_map(up, gate, features) : pair_map(gate, up, features);
}

}  // namespace

void gate_up_wgmma(const Launch& at, int64_t d, int64_t top_k, int64_t experts, Tensor in,
                   const int32_t* plan, const WgmmaGated* parts, int32_t count) {
  WgmmaProblem problem{};
  problem.counts = at.step.counts;
  problem.plan = plan;
  problem.experts = plan == nullptr ? 1 : static_cast<int32_t>(experts);
  problem.top_k = plan == nullptr ? 1 : static_cast<int32_t>(top_k);
  problem.in_divisor = problem.top_k;
  problem.dense = count - 1;
  for (int32_t i = 0; i < count; i++) {
    problem.side[i] = wgmma_side(in, d, parts[i].out, parts[i].gate->rows);
    problem.side[i].up_first = parts[i].up->data < parts[i].gate->data;
  }
  launch_wgmma<true, false>(at, problem, in.dtype, [&](uint32_t features, int i) {
    return gated_map(parts[i], features);
  });
}

}  // namespace moela::cuda
