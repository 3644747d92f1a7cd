// The stream family of products for any number of rows: what linear.cu, gate_up.cu and
// expert_down.cu launch. Definitions of types and orders: stream_types.cuh, stream_f32.cuh.
#pragma once

#include "cuda/ops.h"

namespace moela::cuda {

// out [slots, n] = in W^T (+ residual), or silu(in G^T) * (in U^T). With a plan each slot goes
// through its expert's part, and reads row slot / in_slots of `in`; without, slots are rows.
struct StreamProduct {
  int32_t rows;        // moela_rows
  bool absorbed_only;  // leaves rows from n_absorbed on to another family
  int64_t n, k;
  int64_t top_k;     // slots a row
  int64_t in_slots;  // slots that share a row of `in`
  int64_t experts;
  const int32_t* plan;  // or NULL
  Tensor in;
  Weight weight;
  Weight up;  // data NULL: no gate
  const float* residual;
  Tensor out;
};

void stream_product(const Launch&, const StreamProduct& product);

// Rows of an input as INT8 and INT4 take them: bytes [rows, groups, 128], scales [rows, groups].
struct QuantizedRows {
  const char* bytes;
  const float* scales;
};
// Quantizes a product's input, once for all its tiles, into scratch memory.
QuantizedRows quantize_rows(const Launch&, const StreamProduct& product);

// Many rows of BF16 on Hopper, with the same bits as the others; false where it does not take the
// product.
bool stream_product_ring(const Launch&, const StreamProduct& product);

// By type of weight.
void stream_product_bf16(const Launch&, const StreamProduct& product);
void stream_product_fp8(const Launch&, const StreamProduct& product);
void stream_product_int8(const Launch&, const StreamProduct& product);
void stream_product_int4(const Launch&, const StreamProduct& product);
void stream_product_f32(const Launch&, const StreamProduct& product);

}  // namespace moela::cuda
