// Several operations of a decode program in one launch, for steps of one row: at one row a layer is
// bounded by reading its weights once and by the gaps between launches. Each gives bit for bit what
// the operations it replaces give.
//
// All need: bucket 1 (one row, always on the absorbed path), weights of one type (BF16, FP8,
// INT8 or INT4) and rows that begin on 16 bytes; fits() of each says so. The
// row is inert when the step has none (n_rows 0): nothing is written.
//
// A layer of DeepSeek-V2-Lite at one row:
//   decode_linear   RMS_NORM + LINEAR q + LINEAR kv_a
//   (rotary, cache_write, mla_absorb, mla_decode, mla_expand)
//   decode_linear   LINEAR o with residual
//   decode_router   RMS_NORM + LINEAR router
//   decode_gate_up  RMS_NORM + ROUTER + GATE_UP of the chosen experts + GATE_UP of the shared ones
//   decode_down     EXPERT_DOWN + LINEAR of the shared experts + COMBINE
#pragma once

#include "cuda/ops.h"

namespace moela::cuda {

// A product with the row: out [n] = W [n, k] x (+ residual [n], may be NULL or `out`).
struct DecodeLinear {
  Weight weight;  // part 0; weight.rows = n, weight.cols = k
  const float* residual;
  float* out;
};

// A row that is normed on its way into products: x = in / rms(in) * weight; weight NULL: x = in.
struct DecodeInput {
  Tensor in;           // [k]; F32 when normed
  const Weight* norm;  // [1, k]
  float epsilon;
};

// The same for at most four products of one type and one k.
bool decode_linear_fits(const Launch&, const DecodeLinear* products, int32_t count);
void decode_linear(const Launch&, int32_t rows, const DecodeInput& input,
                   const DecodeLinear* products, int32_t count);

// logits [experts] = router [experts, k] x in the router's own type (F32 or BF16).
bool decode_router_fits(const Launch&, const Weight& router);
void decode_router(const Launch&, const DecodeInput& input, const Weight& router, float* logits);

// The first half of a feed-forward block. A dense one has only `shared`: leave experts.count 0.
struct DecodeExperts {
  RouterShape shape;
  const float* logits;    // [experts], of decode_router
  const Weight* bias;     // or NULL
  Weight gate, up, down;  // count = experts, each [intermediate, d], [d, intermediate]
  Weight shared_gate, shared_up, shared_down;  // one part each; data NULL: no shared experts
  float* routed;                               // [top_k, intermediate]: silu(gate) * up
  float* shared;                               // [shared intermediate]
  int32_t* chosen;  // [top_k]: written by decode_gate_up for whoever looks; may be NULL
  float* weights;   // [top_k]: the same
};
bool decode_experts_fits(const Launch&, const DecodeExperts& experts);
// decode_gate_up and decode_down must follow decode_router and one another directly: decode_down
// reads `logits` before decode_gate_up has ended, to know its weights early.
void decode_gate_up(const Launch&, const DecodeInput& input, const DecodeExperts& experts);
// out [d] = residual + (sum over rank of weights * down(routed), ascending, + down(shared)).
void decode_down(const Launch&, const DecodeExperts& experts, const float* residual, float* out);

}  // namespace moela::cuda
