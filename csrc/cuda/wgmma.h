// Products of the rows on the projected path by Hopper's warpgroup instructions (sm_90a): the
// tensor memory accelerator brings weights, rows are gathered in place.
//
// Every launcher covers rows [step.begin(MOELA_ROWS_PROJECTED), step.end(MOELA_ROWS_PROJECTED)) of
// the step alone, whatever their number (none included), in one launch; a grouped one the slots of
// those rows, in each expert the last of the plan. Call them only where the launch is on Hopper and
// wgmma_takes() says yes, and leave those rows out of the other family.
//
// An element is summed over k in ascending order, 16 at a time by the instruction, in one f32
// accumulator: its bits depend neither on the number of rows nor on where its row lies.
#pragma once

#include "cuda/ops.h"

namespace moela::cuda {

// Whether a weight [n, k] can be multiplied here: BF16, n and k multiples of 8, at most 256 parts.
bool wgmma_takes(const Launch&, const Weight& weight);
// The same for the pair of gate and up weights.
bool wgmma_takes(const Launch&, const Weight& gate, const Weight& up);

// ROTARY of what a product gives, on its way to memory; table NULL: none.
struct Rotation {
  const float* table;  // [R, dr]
  int32_t head_dim, offset, dr;
};

struct WgmmaLinear {
  const Weight* weight;
  const float* residual;  // or NULL
  Tensor out;             // F32, BF16, PROJECTED_BF16
  Rotation rotation;      // offsets and sizes multiples of 8
};

struct WgmmaGated {
  const Weight *gate, *up;
  Tensor out;
};

struct WgmmaDown {
  const Weight* weight;
  Tensor in, out;
};

// As linear(), gate_up() and expert_down() of ops.h, for the projected rows. Inputs are BF16 or
// F32; BF16 is much faster, and both give the same bits. Experts' outputs may be PROJECTED_BF16.
// One or two matrices of the same rows, the sum of an element being the same either way.
void linear_wgmma(const Launch&, int64_t k, Tensor in, const WgmmaLinear* parts, int32_t count);
// The experts, and the shared ones, which take every row, where `count` is 2: in one launch, with
// the same sums.
void gate_up_wgmma(const Launch&, int64_t d, int64_t top_k, int64_t experts, Tensor in,
                   const int32_t* plan, const WgmmaGated* parts, int32_t count);
// Inputs of one type.
void expert_down_wgmma(const Launch&, int64_t top_k, int64_t experts, const int32_t* plan,
                       const WgmmaDown* parts, int32_t count);

}  // namespace moela::cuda
