// Every operation of a program on CUDA: its launcher here, one file each beside this one. The same
// names and meanings as cpu/ops.h; pointers are to device memory.
//
// A decode program's launches are captured once, a bucket of rows each, into a graph and replayed
// for steps of any content: counts, lengths, pages and experts are read on the device, and rows
// past the real count are inert. A mixed program is launched anew each step, so that there `bucket`
// is the step's own number of rows and `context` says how far its projected segments reach.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "moela.h"

namespace moela::cuda {

// A value of the workspace, row-major. F32, I32, or BF16 where only products read it: a product
// rounds its input to bf16 in any case, so that the choice changes no bit.
struct Tensor {
  void* data;
  int32_t dtype;
};
// A dtype of what wgmma gives where the projected rows may be rounded: rows of F32 on the absorbed
// path; on the projected path BF16 in the first half of such a row's place.
constexpr int32_t PROJECTED_BF16 = 1000;
// The same as the absorbed rows know it.
inline Tensor absorbed_rows(Tensor value) {
  return {value.data, value.dtype == PROJECTED_BF16 ? int32_t{MOELA_F32} : value.dtype};
}

// `count` matrices [rows, cols] of a type of moela_weight_desc: part p begins at
// data + p * part_bytes, its scales at scales + p * scale_part_bytes. All are 256-byte aligned, and
// 256 readable bytes follow the last.
struct Weight {
  int32_t dtype;
  int32_t count;
  int64_t rows;
  int64_t cols;
  const char* data;
  int64_t part_bytes;
  const char* scales;
  int64_t scale_part_bytes;
};

// Pages of one cache type: see moela_pool_desc.
struct PagePool {
  int32_t dtype;
  int32_t layers;
  int32_t kv_lora_rank;
  int32_t qk_rope_head_dim;
  int64_t row_bytes;    // of a token's elements in a layer
  int64_t layer_bytes;  // of a page's layer, scales included
  int64_t page_bytes;
  char* base;

  // First row of a page's layer; the scales' codes follow MOELA_PAGE_TOKENS rows.
  __host__ __device__ char* at(int64_t page, int64_t layer) const {
    return base + page * page_bytes + layer * layer_bytes;
  }
  __host__ __device__ uint8_t* scales_at(int64_t page, int64_t layer) const {
    return reinterpret_cast<uint8_t*>(at(page, layer) + MOELA_PAGE_TOKENS * row_bytes);
  }
};

struct Counts {
  int32_t n_rows;
  int32_t n_absorbed;
  int32_t n_segments;
  int32_t n_logits;  // of the block of logits rows at hand
};

// A step in device memory. Fixed addresses, contents written before each replay.
struct Step {
  const Counts* counts;
  const int32_t* tokens;          // [n_rows]
  const int32_t* positions;       // [n_rows]
  const int32_t* row_segment;     // [n_rows]
  const moela_segment* segments;  // [n_segments]
  const int32_t* pages;
  const PagePool* pools;
  const int32_t* logit_rows;  // [n_logits]

  // Rows of a moela_rows: [begin, end). On the device only.
  __device__ int begin(int rows) const {
    return rows == MOELA_ROWS_PROJECTED ? counts->n_absorbed : 0;
  }
  __device__ int end(int rows) const {
    return rows == MOELA_ROWS_ABSORBED ? counts->n_absorbed
           : rows == MOELA_ROWS_LOGITS ? counts->n_logits
                                       : counts->n_rows;
  }
};

// Where and how an operation is launched.
struct Launch {
  cudaStream_t stream;
  Step step;
  int32_t bucket;          // rows (or logits rows) of the step at most: what grids are sized for
  int32_t absorbed;        // of them on the absorbed path at most; the rest may be projected
  int64_t context;         // keys of a projected segment at most; 0 in decode programs
  int64_t projected_keys;  // sum over projected segments of their keys, each rounded up to 128
  int32_t sms;             // multiprocessors
  bool hopper;             // sm_90a kernels may be used
  bool overlap;            // programmatic dependent launch: see launch.h
  char* scratch;  // for the operation at hand alone; zero before the first replay, and every
  int64_t scratch_bytes;  // operation that needs it zero leaves it zero
};

// The products. Rows on the absorbed path take the stream family (mma.sync, or f32 arithmetic for
// f32 weights), rows on the projected path wgmma where the GPU and the type have it.

// out [R, n] = in [R, k] weight [n, k]^T (+ residual [R, n], f32; may be out.data or NULL).
void linear(const Launch&, int32_t rows, int64_t n, int64_t k, Tensor in, const Weight& weight,
            const float* residual, Tensor out);
// plan NULL: all rows through part 0 with top_k 1; see MOELA_OP_GATE_UP.
void gate_up(const Launch&, int32_t rows, int64_t intermediate, int64_t d, int64_t top_k,
             int64_t experts, Tensor in, const int32_t* plan, const Weight& gate, const Weight& up,
             Tensor out);
void expert_down(const Launch&, int32_t rows, int64_t d, int64_t intermediate, int64_t top_k,
                 int64_t experts, Tensor in, const int32_t* plan, const Weight& down, Tensor out);

// Latent attention.
void mla_absorb(const Launch&, int64_t heads, int64_t dn, int64_t dr, int64_t dv, int64_t r,
                float scale, Tensor q, const Weight& kv_b, Tensor out);
void mla_decode(const Launch&, int32_t layer, int64_t heads, int64_t r, int64_t dr, Tensor q_latent,
                Tensor out);
void mla_expand(const Launch&, int64_t heads, int64_t dn, int64_t dr, int64_t dv, int64_t r,
                Tensor o_latent, const Weight& kv_b, Tensor out);
// Whether mla_prefill() takes its path for Hopper, on which q may be PROJECTED_BF16.
bool mla_prefill_fast(bool hopper, const Weight& kv_b, int64_t dn, int64_t dr, int64_t dv,
                      int64_t r);
void mla_prefill(const Launch&, int32_t layer, int64_t heads, int64_t dn, int64_t dr, int64_t dv,
                 int64_t r, float scale, Tensor q, const Weight& kv_b, Tensor out);

// The rest; values are f32 unless they are Tensors.
void embed(const Launch&, int32_t rows, int64_t d, const Weight& table, float* out);
// twin: NULL, or `out` once more in BF16.
void rms_norm(const Launch&, int32_t rows, int64_t d, int64_t stride, const float* in,
              const Weight& weight, float epsilon, Tensor out, uint16_t* twin = nullptr);
void rope_table(const Launch&, int32_t rows, int64_t dr, const Weight& inverse_frequencies,
                float factor, float* out);
void rotary(const Launch&, int32_t rows, int64_t heads, int64_t head_dim, int64_t offset,
            int64_t dr, const float* table, float* in_out);
void cache_write(const Launch&, int32_t rows, int32_t layer, int64_t r, int64_t dr,
                 const float* kv_a, const float* table, const Weight& norm, float epsilon);

struct RouterShape {
  int64_t experts, top_k, n_group, topk_group;
  int32_t scoring;      // moela_scoring
  int32_t group_score;  // moela_group_score
  bool normalise;
  float factor;
};
void router(const Launch&, int32_t rows, const RouterShape& shape, const float* logits,
            const Weight* bias, int32_t* experts, float* weights);
void moe_plan(const Launch&, int32_t rows, int64_t experts, int64_t top_k, const int32_t* chosen,
              int32_t* plan);
void combine(const Launch&, int32_t rows, int64_t d, int64_t top_k, Tensor in, const float* weights,
             const float* shared, const float* residual, float* out);
void gather(const Launch&, int64_t d, const float* in, float* out);

// What a step wants of its logits rows; device memory, NULL where not wanted.
struct Outputs {
  const int32_t* targets;           // [n_logits]
  float* logprobs;                  // [n_logits]
  const moela_sampling* samplings;  // [n_logits]
  const int32_t* aux;
  // Tokens drawn by earlier steps of the same call, per sampling: they belong to its history.
  const int32_t* drawn;  // [n_logits, drawn_stride]
  int32_t drawn_stride;
  const int32_t* n_drawn;  // one number
  int32_t first_sampling;  // index of samplings[0] among the step's
  int32_t* entries;        // [n_logits, entry_words]: see moela_step
  int32_t entry_words;
};
void logprob(const Launch&, const Outputs&, int64_t vocab, const float* logits);
void sample(const Launch&, const Outputs&, int64_t vocab, const float* logits);

}  // namespace moela::cuda
