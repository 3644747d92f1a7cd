// Products in AVX2 with weights of FP8 and INT8 taken as f32, value * scale (see kernels.h): the
// order of every sum is that of f32 weights (gemm_avx2.cc), whatever the number of rows.
#if defined(__x86_64__)

#include "gemm_avx2.h"
#include "widen_avx2.h"

namespace moela {
namespace {

// What `rows` rows of b from `from` on have in a group of columns.
void prefetch_group(const char* from, int64_t rows, int64_t stride) {
  for (int64_t i = 0; i < rows; i++) {
    _mm_prefetch(from + i * stride, _MM_HINT_T0);
    _mm_prefetch(from + i * stride + 64, _MM_HINT_T0);
  }
}

// One row of a with N rows of b from `row` on.
template <class Raw, int N>
void row_nt(const WeightRows& b, const NtArgs& args, int64_t row, const float* a, float* c) {
  const char* from = b.data + row * b.cols;
  __m256 sums[1][N];
  clear(sums);
  for (int64_t begin = 0; begin < b.cols; begin += GROUP) {
    // A step ahead: the rows that follow.
    prefetch_group(from + N * b.cols + begin, N, b.cols);
    __m256 scales[N];
    for (int j = 0; j < N; j++) scales[j] = _mm256_set1_ps(Raw::scale(b, row + j, begin / GROUP));
    const int64_t end = at_most(begin + GROUP, b.cols);
    int64_t l = begin;
    for (; l + 8 <= end; l += 8) {
      const __m256 x = _mm256_loadu_ps(a + l);
      for (int j = 0; j < N; j++) {
        const __m256 w = _mm256_mul_ps(Raw::all(from + j * b.cols + l), scales[j]);
        sums[0][j] = _mm256_fmadd_ps(x, w, sums[0][j]);
      }
    }
    if (l == end) continue;
    const __m256 x = LoadF32::part(reinterpret_cast<const char*>(a + l), end - l);
    for (int j = 0; j < N; j++) {
      const __m256 w = _mm256_mul_ps(raw_part<Raw>(from + j * b.cols + l, end - l), scales[j]);
      sums[0][j] = _mm256_fmadd_ps(x, w, sums[0][j]);
    }
  }
  finish(args, sums, c);
}

template <class Raw>
void gemm_nt(const WeightRows& b, int64_t m, int64_t n, const float* a, int64_t lda, float* c,
             int64_t ldc, bool add) {
  const NtArgs args{b.cols, lda, 0, ldc, add};
  int64_t j = 0;
  if (m == 1) {
    for (; j + 8 <= n; j += 8) row_nt<Raw, 8>(b, args, b.first + j, a, c + j);
  } else {
    int64_t panel = PANEL_BYTES / (b.cols * 4);
    if (panel < PANEL_ROWS_MIN) panel = PANEL_ROWS_MIN;
    for (int64_t i = 0; i < m; i += panel) {
      for (j = 0; j + 4 <= n; j += 4) {
        wide_strip_nt(args, at_most(panel, m - i), a + i * lda, c + i * ldc + j,
                      [&](int64_t row, int64_t begin, int64_t count, float* to) {
                        widen_scaled<Raw>(b, b.first + j + row, begin, count, to, 8);
                      });
      }
    }
  }
  for (; j < n; j++) {
    for (int64_t i = 0; i < m; i++) {
      row_nt<Raw, 1>(b, args, b.first + j, a + i * lda, c + i * ldc + j);
    }
  }
}

// One row of a, L rows of b from `row` on: c stays in the first-level cache.
template <class Raw, int L>
void rows_nn(const WeightRows& b, int64_t row, const float* a, float* c, bool add) {
  const char* from = b.data + row * b.cols;
  __m256 factors[L];
  for (int l = 0; l < L; l++) factors[l] = _mm256_set1_ps(a[l]);
  for (int64_t begin = 0; begin < b.cols; begin += GROUP) {
    prefetch_group(from + L * b.cols + begin, L, b.cols);
    __m256 scales[L];
    for (int l = 0; l < L; l++) scales[l] = _mm256_set1_ps(Raw::scale(b, row + l, begin / GROUP));
    const int64_t end = at_most(begin + GROUP, b.cols);
    int64_t j = begin;
    for (; j + 8 <= end; j += 8) {
      __m256 sum = add ? _mm256_loadu_ps(c + j) : _mm256_setzero_ps();
      for (int l = 0; l < L; l++) {
        const __m256 w = _mm256_mul_ps(Raw::all(from + l * b.cols + j), scales[l]);
        sum = _mm256_fmadd_ps(factors[l], w, sum);
      }
      _mm256_storeu_ps(c + j, sum);
    }
    if (j == end) continue;
    __m256 sum =
        add ? LoadF32::part(reinterpret_cast<const char*>(c + j), end - j) : _mm256_setzero_ps();
    for (int l = 0; l < L; l++) {
      const __m256 w = _mm256_mul_ps(raw_part<Raw>(from + l * b.cols + j, end - j), scales[l]);
      sum = _mm256_fmadd_ps(factors[l], w, sum);
    }
    _mm256_maskstore_ps(c + j, first_lanes(end - j), sum);
  }
}

// Many rows of a: rows of b are turned into f32 a few at a time.
constexpr int64_t NN_ROWS = 16;

template <class Raw>
void gemm_nn(const WeightRows& b, int64_t m, int64_t k, const float* a, int64_t lda, float* c,
             int64_t ldc, bool add) {
  if (m == 1) {
    int64_t l = 0;
    for (; l + 4 <= k; l += 4) rows_nn<Raw, 4>(b, b.first + l, a + l, c, add || l > 0);
    for (; l < k; l++) rows_nn<Raw, 1>(b, b.first + l, a + l, c, add || l > 0);
    return;
  }
  float wide[NN_ROWS * WIDE_STRIDE];
  for (int64_t j = 0; j < b.cols; j += CHUNK) {
    const int64_t count = at_most(CHUNK, b.cols - j);
    for (int64_t l = 0; l < k; l += NN_ROWS) {
      const int64_t rows = at_most(NN_ROWS, k - l);
      for (int64_t i = 0; i < rows; i++) {
        widen_scaled<Raw>(b, b.first + l + i, j, count, wide + i * WIDE_STRIDE, 8);
      }
      gemm_nn_avx2(MOELA_F32, m, count, rows, a + l, lda, wide, WIDE_STRIDE, c + j, ldc,
                   add || l > 0);
    }
  }
}

}  // namespace

void gemm_nt_scaled_avx2(const WeightRows& b, int64_t m, int64_t n, const float* a, int64_t lda,
                         float* c, int64_t ldc, bool add) {
  if (b.dtype == MOELA_FP8) return gemm_nt<RawFp8>(b, m, n, a, lda, c, ldc, add);
  gemm_nt<RawInt8>(b, m, n, a, lda, c, ldc, add);
}

void gemm_nn_scaled_avx2(const WeightRows& b, int64_t m, int64_t k, const float* a, int64_t lda,
                         float* c, int64_t ldc, bool add) {
  if (b.dtype == MOELA_FP8) return gemm_nn<RawFp8>(b, m, k, a, lda, c, ldc, add);
  gemm_nn<RawInt8>(b, m, k, a, lda, c, ldc, add);
}

}  // namespace moela

#endif
