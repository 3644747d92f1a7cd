// Matrix products in AVX-512, in f32, with the bits of AVX2's: a vector holds the eight partial
// sums (gemm_avx2.h) of two elements of c that lie side by side. Few rows are AVX2's own.
#if defined(__x86_64__)

#include "avx512.h"
#include "widen_avx2.h"

namespace moela {
namespace {

// From so many rows on laying out b pays.
constexpr int64_t MANY_ROWS = 4;

// ---- c = a b^T -------------------------------------------------------------------------------

// Rows of b taken together: as f32, CHUNK columns at a time, in vectors of eight columns of two
// rows.
constexpr int64_t B_ROWS = 8;
constexpr int64_t PAIRS = B_ROWS / 2;
constexpr int64_t CHUNK = 512;
// Rows of a whose sums are kept at once, and whose chunks stay in the second-level cache.
constexpr int64_t PANEL = 96;

struct LaidOut {
  alignas(64) float values[CHUNK / 8][B_ROWS][8];
};

// Sums of M rows of a with B_ROWS of b go on from `sums` [M][PAIRS] by `count` columns.
template <int M>
void tile_nt(int64_t count, const float* a, int64_t lda, const LaidOut& b, __m512 (*sums)[PAIRS]) {
  __m512 now[M][PAIRS];
  for (int i = 0; i < M; i++) {
    for (int j = 0; j < PAIRS; j++) now[i][j] = sums[i][j];
  }
  const auto step = [&](int64_t l, const auto& load) {
    __m512 columns[PAIRS];
    for (int j = 0; j < PAIRS; j++) columns[j] = _mm512_load_ps(b.values[l / 8][2 * j]);
    for (int i = 0; i < M; i++) {
      const __m512 row = _mm512_broadcast_f32x8(load(a + i * lda + l));
      for (int j = 0; j < PAIRS; j++) now[i][j] = _mm512_fmadd_ps(row, columns[j], now[i][j]);
    }
  };
  int64_t l = 0;
  for (; l + 8 <= count; l += 8) step(l, [](const float* at) { return _mm256_loadu_ps(at); });
  if (l < count) {
    const __m256i lanes = first_lanes(count - l);
    step(l, [&](const float* at) { return _mm256_maskload_ps(at, lanes); });
  }
  for (int i = 0; i < M; i++) {
    for (int j = 0; j < PAIRS; j++) sums[i][j] = now[i][j];
  }
}

// The partial sums of a row's elements, joined as AVX2 joins them.
void finish(const __m512 (&sums)[PAIRS], int64_t columns, float* c, bool add) {
  for (int64_t j = 0; j < columns; j += 4) {
    const __m512 first = sums[j / 2], second = sums[j / 2 + 1];
    __m128 four = lane_sums(_mm512_castps512_ps256(first), _mm512_extractf32x8_ps(first, 1),
                            _mm512_castps512_ps256(second), _mm512_extractf32x8_ps(second, 1));
    const __m128i lanes = _mm256_castsi256_si128(first_lanes(columns - j));
    if (add) four = _mm_add_ps(_mm_maskload_ps(c + j, lanes), four);
    _mm_maskstore_ps(c + j, lanes, four);
  }
}

// widen(j, begin, count, to): columns of row j of b, in vectors B_ROWS * 8 floats apart.
template <class Widen>
void many_rows_nt(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, float* c,
                  int64_t ldc, bool add, const Widen& widen) {
  LaidOut laid_out;
  __m512 sums[PANEL][PAIRS];
  for (int64_t panel = 0; panel < m; panel += PANEL) {
    const int64_t rows = at_most(PANEL, m - panel);
    const float* from = a + panel * lda;
    for (int64_t j = 0; j < n; j += B_ROWS) {
      const int64_t columns = at_most(B_ROWS, n - j);
      for (int64_t i = 0; i < rows; i++) {
        for (__m512& sum : sums[i]) sum = _mm512_setzero_ps();
      }
      for (int64_t begin = 0; begin < k; begin += CHUNK) {
        const int64_t count = at_most(CHUNK, k - begin);
        for (int64_t r = 0; r < B_ROWS; r++) {
          // The last row is taken several times where there are fewer.
          widen(j + at_most(r, columns - 1), begin, count, laid_out.values[0][r]);
        }
        int64_t i = 0;
        const auto tile = [&](auto function, int64_t tile_rows) {
          function(count, from + i * lda + begin, lda, laid_out, sums + i);
          i += tile_rows;
        };
        while (rows - i >= 6) tile(tile_nt<6>, 6);
        if (rows - i >= 4) tile(tile_nt<4>, 4);
        if (rows - i >= 2) tile(tile_nt<2>, 2);
        if (rows - i >= 1) tile(tile_nt<1>, 1);
      }
      for (int64_t i = 0; i < rows; i++) finish(sums[i], columns, c + (panel + i) * ldc + j, add);
    }
  }
}

template <class Type>
void plain_nt(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const char* b,
              int64_t ldb, float* c, int64_t ldc, bool add) {
  many_rows_nt(m, n, k, a, lda, c, ldc, add,
               [&](int64_t j, int64_t begin, int64_t count, float* to) {
                 widen_plain<Type>(b + j * ldb * Type::BYTES, begin, count, to, B_ROWS * 8);
               });
}

template <class Raw>
void scaled_nt(const WeightRows& b, int64_t m, int64_t n, const float* a, int64_t lda, float* c,
               int64_t ldc, bool add) {
  many_rows_nt(m, n, b.cols, a, lda, c, ldc, add,
               [&](int64_t j, int64_t begin, int64_t count, float* to) {
                 widen_scaled<Raw>(b, b.first + j, begin, count, to, B_ROWS * 8);
               });
}

// ---- c = a b, b of f32 -----------------------------------------------------------------------

// M rows with N vectors of columns, the last of them of `lanes`. l ascending, as in AVX2.
template <int M, int N>
void tile_nn(int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
             int64_t ldc, bool add, __mmask16 lanes) {
  const auto mask = [&](int j) { return j == N - 1 ? lanes : static_cast<__mmask16>(0xffff); };
  // Whole loops are unrolled, or the sums would not stay in registers.
  __m512 sums[M][N];
#pragma GCC unroll 12
  for (int i = 0; i < M; i++) {
    for (int j = 0; j < N; j++) {
      sums[i][j] = add ? _mm512_maskz_loadu_ps(mask(j), c + i * ldc + j * 16) : _mm512_setzero_ps();
    }
  }
  for (int64_t l = 0; l < k; l++) {
    __m512 columns[N];
    for (int j = 0; j < N; j++) columns[j] = _mm512_maskz_loadu_ps(mask(j), b + l * ldb + j * 16);
    for (int i = 0; i < M; i++) {
      const __m512 row = _mm512_set1_ps(a[i * lda + l]);
      for (int j = 0; j < N; j++) sums[i][j] = _mm512_fmadd_ps(row, columns[j], sums[i][j]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < M; i++) {
    for (int j = 0; j < N; j++) {
      _mm512_mask_storeu_ps(c + i * ldc + j * 16, mask(j), sums[i][j]);
    }
  }
}

template <int N>
void strip_nn(int64_t m, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
              float* c, int64_t ldc, bool add, __mmask16 lanes) {
  int64_t i = 0;
  const auto tile = [&](auto function, int64_t rows) {
    function(k, a + i * lda, lda, b, ldb, c + i * ldc, ldc, add, lanes);
    i += rows;
  };
  while (m - i >= 12) tile(tile_nn<12, N>, 12);
  if (m - i >= 8) tile(tile_nn<8, N>, 8);
  if (m - i >= 4) tile(tile_nn<4, N>, 4);
  if (m - i >= 2) tile(tile_nn<2, N>, 2);
  if (m - i >= 1) tile(tile_nn<1, N>, 1);
}

void many_rows_nn(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                  int64_t ldb, float* c, int64_t ldc, bool add) {
  int64_t j = 0;
  for (; n - j > 16; j += 32) {
    strip_nn<2>(m, k, a, lda, b + j, ldb, c + j, ldc, add, first_lanes16(n - j - 16));
  }
  if (n > j) strip_nn<1>(m, k, a, lda, b + j, ldb, c + j, ldc, add, first_lanes16(n - j));
}

}  // namespace

void gemm_nt_avx512(int32_t b_dtype, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
                    const void* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  if (m < MANY_ROWS) return gemm_nt_avx2(b_dtype, m, n, k, a, lda, b, ldb, c, ldc, add);
  const char* bytes = static_cast<const char*>(b);
  if (b_dtype == MOELA_BF16) return plain_nt<LoadBf16>(m, n, k, a, lda, bytes, ldb, c, ldc, add);
  plain_nt<LoadF32>(m, n, k, a, lda, bytes, ldb, c, ldc, add);
}

void gemm_nt_scaled_avx512(const WeightRows& b, int64_t m, int64_t n, const float* a, int64_t lda,
                           float* c, int64_t ldc, bool add) {
  if (m < MANY_ROWS) return gemm_nt_scaled_avx2(b, m, n, a, lda, c, ldc, add);
  if (b.dtype == MOELA_FP8) return scaled_nt<RawFp8>(b, m, n, a, lda, c, ldc, add);
  scaled_nt<RawInt8>(b, m, n, a, lda, c, ldc, add);
}

void gemm_nn_avx512(int32_t b_dtype, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
                    const void* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  if (m < MANY_ROWS || b_dtype != MOELA_F32) {
    return gemm_nn_avx2(b_dtype, m, n, k, a, lda, b, ldb, c, ldc, add);
  }
  many_rows_nn(m, n, k, a, lda, static_cast<const float*>(b), ldb, c, ldc, add);
}

}  // namespace moela

#endif
