// What the files of the reference kernels share.
#pragma once

#include "kernels.h"

namespace moela {

void gemm_nt_scaled_reference(const WeightRows& b, int64_t m, int64_t n, const float* a,
                              int64_t lda, float* c, int64_t ldc, bool add);
void gemm_nn_scaled_reference(const WeightRows& b, int64_t m, int64_t k, const float* a,
                              int64_t lda, float* c, int64_t ldc, bool add);
int64_t packed_bytes_reference(int32_t dtype, int64_t m, int64_t k);
void pack_reference(int32_t dtype, int64_t m, int64_t k, const float* const* rows, char* out);
void gemm_packed_reference(const WeightRows& b, int64_t m, int64_t n, const char* packed, float* c,
                           int64_t ldc, bool add);

}  // namespace moela
