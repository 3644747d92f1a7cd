// Every operation of a program on the CPU: its signature here, one file each beside this one.
// Shapes are in moela.h beside the operation's kind; activations are f32.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "cpu/cache_layout.h"
#include "kernels.h"
#include "moela.h"
#include "runtime/threads.h"

namespace moela {

// `count` matrices [rows, cols] of a type of moela_weight_desc (constants also F64 and I32).
struct Weight {
  int32_t dtype;
  int64_t rows;
  int64_t cols;
  std::vector<const void*> parts;   // [count], each contiguous, unaligned
  std::vector<const void*> scales;  // [count] for the types with scales, else empty
};

// Pages of one cache type: see moela_pool_desc.
struct PagePool {
  int32_t dtype;
  int32_t layers;
  int32_t kv_lora_rank;
  int32_t qk_rope_head_dim;
  int32_t max_pages;
  char* base;

  // Bytes of a token's elements in a layer, and of its scales.
  int64_t row_bytes() const { return cache_row_bytes(dtype, kv_lora_rank, qk_rope_head_dim); }
  int64_t scale_bytes() const { return dtype == MOELA_F32 || dtype == MOELA_BF16 ? 0 : 2; }
  int64_t layer_bytes() const { return MOELA_PAGE_TOKENS * (row_bytes() + scale_bytes()); }
  int64_t page_bytes() const { return layers * layer_bytes(); }
  // First row, [MOELA_PAGE_TOKENS, row_bytes()], of a page's layer.
  char* at(int32_t page, int32_t layer) const {
    return base + page * page_bytes() + layer * layer_bytes();
  }
  // uint8 [MOELA_PAGE_TOKENS, 2]: the codes of a page's layer, for types with scales.
  uint8_t* scales_at(int32_t page, int32_t layer) const {
    return reinterpret_cast<uint8_t*>(at(page, layer)) + MOELA_PAGE_TOKENS * row_bytes();
  }
};

// One step as the operations see it, arguments already checked.
struct StepView {
  int32_t n_rows;
  int32_t n_absorbed;
  int32_t n_segments;
  const int32_t* tokens;          // [n_rows]
  const int32_t* positions;       // [n_rows]
  const int32_t* row_segment;     // [n_rows]
  const moela_segment* segments;  // [n_segments]
  const int32_t* pages;
  const PagePool* pools;
  // The block of logits rows at hand.
  int32_t n_logits;
  const int32_t* logit_rows;        // [n_logits]
  const int32_t* targets;           // NULL or [n_logits]
  const moela_sampling* samplings;  // NULL or [n_logits]
  const int32_t* aux;
  int32_t first_sampling;  // index of samplings[0] among the step's
  // Tokens drawn by earlier steps of the same call, per sampling: they belong to its history.
  const int32_t* drawn;  // [n_logits, drawn_stride] or NULL
  int32_t drawn_stride;
  int32_t n_drawn;
  float* logits_out;     // NULL or [n_logits, V]
  float* logprobs_out;   // NULL or [n_logits]
  int32_t* entries_out;  // [n_logits, entry_words]
  int32_t entry_words;

  // Rows of a moela_rows: [begin, end).
  int64_t begin(int32_t rows) const { return rows == MOELA_ROWS_PROJECTED ? n_absorbed : 0; }
  int64_t end(int32_t rows) const {
    return rows == MOELA_ROWS_ABSORBED ? n_absorbed : rows == MOELA_ROWS_LOGITS ? n_logits : n_rows;
  }
};

// Scratch memory of a thread, grown on demand and kept; whole lines of the cache. One get() at a
// time may be alive.
class Scratch {
 public:
  float* get(int64_t floats) {
    constexpr int64_t LINE = 16;
    if (static_cast<int64_t>(memory_.size()) < floats + LINE) memory_.resize(floats + LINE);
    const uintptr_t begin = reinterpret_cast<uintptr_t>(memory_.data());
    return memory_.data() + (64 - begin % 64) % 64 / sizeof(float);
  }

 private:
  std::vector<float> memory_;
};

struct Context {
  const Kernels& kernels;
  Threads& threads;
  std::vector<Scratch>& scratch;  // [threads.count()]; operations grow it on the calling thread
  const StepView& step;
  const std::atomic<int32_t>* cancel;  // long operations may poll it between tasks; may be NULL
};

// Row pointers below are to row 0 of the step (or of the logits block), also where an operation
// covers a part of the rows; `rows` is a moela_rows.
void embed(Context&, int32_t rows, int64_t d, const Weight& table, float* out);
void rms_norm(Context&, int32_t rows, int64_t d, int64_t stride, const float* in,
              const Weight& weight, float epsilon, float* out);
void linear(Context&, int32_t rows, int64_t n, int64_t k, const float* in, const Weight& weight,
            const float* residual, float* out);
void rope_table(Context&, int32_t rows, int64_t dr, const Weight& inverse_frequencies, float factor,
                float* out);
void rotary(Context&, int32_t rows, int64_t heads, int64_t head_dim, int64_t offset, int64_t dr,
            const float* table, float* in_out);
void cache_write(Context&, int32_t rows, int32_t layer, int64_t r, int64_t dr, const float* kv_a,
                 const float* table, const Weight& norm, float epsilon);
void mla_absorb(Context&, int64_t heads, int64_t dn, int64_t dr, int64_t dv, int64_t r, float scale,
                const float* q, const Weight& kv_b, float* out);
void mla_decode(Context&, int32_t layer, int64_t heads, int64_t r, int64_t dr,
                const float* q_latent, float* out);
void mla_expand(Context&, int64_t heads, int64_t dn, int64_t dr, int64_t dv, int64_t r,
                const float* o_latent, const Weight& kv_b, float* out);
void mla_prefill(Context&, int32_t layer, int64_t heads, int64_t dn, int64_t dr, int64_t dv,
                 int64_t r, float scale, const float* q, const Weight& kv_b, float* out);

struct RouterShape {
  int64_t experts, top_k, n_group, topk_group;
  int32_t scoring;      // moela_scoring
  int32_t group_score;  // moela_group_score
  bool normalise;
  float factor;
};
void router(Context&, int32_t rows, const RouterShape& shape, const float* logits,
            const Weight* bias, int32_t* experts, float* weights);
void moe_plan(Context&, int32_t rows, int64_t experts, int64_t top_k, const int32_t* chosen,
              int32_t* plan);
void gate_up(Context&, int32_t rows, int64_t intermediate, int64_t d, int64_t top_k,
             int64_t experts, const float* in, const int32_t* plan, const Weight& gate,
             const Weight& up, float* out);
void expert_down(Context&, int32_t rows, int64_t d, int64_t intermediate, int64_t top_k,
                 int64_t experts, const float* in, const int32_t* plan, const Weight& down,
                 float* out);
void combine(Context&, int32_t rows, int64_t d, int64_t top_k, const float* in,
             const float* weights, const float* shared, const float* residual, float* out);

void gather(Context&, int64_t d, const float* in, float* out);
void logits_out(Context&, int64_t vocab, const float* in);
void logprob(Context&, int64_t vocab, const float* in);
void sample(Context&, int64_t vocab, const float* in);

}  // namespace moela
