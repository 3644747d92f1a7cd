// The innermost loops, one table an instruction set; every CPU operation is written once on top.
//
// Row invariance rests here: each element of a result is summed in an order that depends on k
// alone, never on m, n, the element's place in the tile or on which thread runs it.
#pragma once

#include <cstdint>

#include "moela.h"

namespace moela {

// Rows `first` and on of a weight [?, cols]; data and scales are those of the weight's row 0.
struct WeightRows {
  int32_t dtype;
  int64_t cols;
  const char* data;
  const char* scales;  // NULL for types without
  int64_t first;
};

// Rows of one segment at positions [position, position + rows) and a head of MLA_PREFILL: queries
// and results, rows q_stride and o_stride elements apart.
struct HeadRows {
  int64_t dn, dr, dv, r;
  float scale;
  int64_t position, rows;
  const float* q;
  int64_t q_stride;
  float* out;
  int64_t o_stride;
};

// MLA_PREFILL where neither kv_b_proj nor the cache is F32, with keys, values, queries and weights
// of the softmax rounded to bf16.
struct TiledAttention {
  int64_t (*bytes)(const HeadRows&);  // of `memory`, which is aligned to 64 bytes
  // kv_b: the head's [dn + dv, r] in BF16.
  void (*begin)(const HeadRows&, const void* kv_b, char* memory);
  // Pages ascending from key 0: keys [key, key + n), entries [n, r + dr] in BF16. A row takes those
  // up to its position; n is less than a page's only where no row sees more.
  void (*add_page)(const HeadRows&, int64_t key, int64_t n, const void* entries, char* memory);
  void (*finish)(const HeadRows&, char* memory);
};

struct Kernels {
  int32_t id;  // moela_kernels

  // c[i * ldc + j] = sum over l of a[i * lda + l] * b[j * ldb + l], i < m, j < n, l < k:
  // rows of `a` (f32) with rows of `b` (b_dtype: F32 or BF16). Strides in elements. k >= 1.
  // `add`: c += instead of c =, one addition after the whole sum.
  void (*gemm_nt)(int32_t b_dtype, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
                  const void* b, int64_t ldb, float* c, int64_t ldc, bool add);

  // c[i * ldc + j] (+)= sum over l of a[i * lda + l] * b[l * ldb + j], l ascending: with `add` the
  // sum starts from c, so that a long k may be cut anywhere without a change in the result.
  void (*gemm_nn)(int32_t b_dtype, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
                  const void* b, int64_t ldb, float* c, int64_t ldc, bool add);

  // The same with a weight of FP8 or INT8 taken as f32, value * scale: gemm_nt with its rows
  // b.first + j, gemm_nn with its rows b.first + l and all its columns.
  void (*gemm_nt_scaled)(const WeightRows& b, int64_t m, int64_t n, const float* a, int64_t lda,
                         float* c, int64_t ldc, bool add);
  void (*gemm_nn_scaled)(const WeightRows& b, int64_t m, int64_t k, const float* a, int64_t lda,
                         float* c, int64_t ldc, bool add);

  // Some types' products take their input packed: quantized or rounded, and laid out for m rows
  // together. Bytes that m rows of k elements take, a multiple of 64; 0 where the type's products
  // take f32.
  int64_t (*packed_bytes)(int32_t dtype, int64_t m, int64_t k);
  // Packs rows[i] [k], i < m, to `out`, which is aligned to 64 bytes.
  void (*pack)(int32_t dtype, int64_t m, int64_t k, const float* const* rows, char* out);
  // c[i * ldc + j] (+)= sum over l of row i of `packed` (m rows) * row b.first + j. With INT8 and
  // INT4 every set gives the same bits: integer_rows.h.
  void (*gemm_packed)(const WeightRows& b, int64_t m, int64_t n, const char* packed, float* c,
                      int64_t ldc, bool add);

  // y = x / sqrt(mean(x^2) + epsilon) * weight (w_dtype: F32 or BF16), n elements.
  void (*rms_norm)(int64_t n, const float* x, int32_t w_dtype, const void* weight, float epsilon,
                   float* y);

  // y = silu(gate) * up = gate / (1 + exp(-gate)) * up. y may be gate.
  void (*silu_mul)(int64_t n, const float* gate, const float* up, float* y);

  // x *= factor.
  void (*scale)(int64_t n, float factor, float* x);

  // Largest element; -inf when n is 0.
  float (*max)(int64_t n, const float* x);

  // x = exp(x - shift) in place; returns their sum. exp to within 2 ulp; -inf gives 0.
  float (*exp_sum)(int64_t n, float shift, float* x);

  // to = from rounded to nearest even (dtype F32 or BF16), and back.
  void (*store)(int32_t dtype, int64_t n, const float* from, void* to);
  void (*load)(int32_t dtype, int64_t n, const void* from, float* to);

  const TiledAttention* attention;  // NULL: f32 by the products above
};

const Kernels& reference_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& amx_kernels();
#endif

// Bytes of an element of F32, BF16, I32, F64.
inline int64_t dtype_bytes(int32_t dtype) {
  return dtype == MOELA_BF16 || dtype == MOELA_F16   ? 2
         : dtype == MOELA_F64                        ? 8
         : dtype == MOELA_FP8 || dtype == MOELA_INT8 ? 1
                                                     : 4;
}

}  // namespace moela
