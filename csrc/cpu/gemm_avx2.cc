// Matrix products in AVX2, bf16 or f32 times f32.
//
// Row invariance: each element of c has one accumulator, and what is added to it in which order
// depends on k alone. A tile only decides which elements are summed side by side.
#if defined(__x86_64__)

#include "gemm_avx2.h"
#include "widen_avx2.h"

namespace moela {
namespace {

// ---- c = a b^T: lanes along k ----------------------------------------------------------------

// Rows of b of up to so many elements are fetched while those before them are multiplied: they end
// before the processor has seen where they lead. Nothing is read, so also beyond the last row.
constexpr int64_t FETCHED_K = 512;

template <class B, int N>
void fetch(const NtArgs& args, const char* b) {
  if (args.k > FETCHED_K) return;
  for (int j = 0; j < N; j++) {
    for (int64_t at = 0; at < args.k * B::BYTES; at += 64) {
      _mm_prefetch(b + j * args.ldb + at, _MM_HINT_T0);
    }
  }
}

template <class B, int M, int N>
void tile_nt(const NtArgs& args, const float* a, const char* b, float* c) {
  __m256 sums[M][N];
  clear(sums);
  accumulate<B>(args.k, a, args.lda, b, args.ldb, sums);
  finish(args, sums, c);
}

// N rows of b with all m rows of a.
template <class B, int N>
void strip_nt(const NtArgs& args, int64_t m, const float* a, const char* b, float* c) {
  row_tiles(m, [&](int64_t i, auto rows) {
    tile_nt<B, rows.COUNT, N>(args, a + i * args.lda, b, c + i * args.ldc);
  });
}

// The same for four rows of b, bf16, and many of a.
void wide_bf16_nt(const NtArgs& args, int64_t m, const float* a, const char* b, float* c) {
  wide_strip_nt(args, m, a, c, [&](int64_t j, int64_t begin, int64_t count, float* to) {
    widen_plain<LoadBf16>(b + j * args.ldb, begin, count, to, 8);
  });
}

template <class B>
void gemm_nt(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const char* b,
             int64_t ldb, float* c, int64_t ldc, bool add) {
  if (m == 0) return;
  const NtArgs args{k, lda, ldb * B::BYTES, ldc, add};
  int64_t panel = PANEL_BYTES / (k * 4);
  if (panel < PANEL_ROWS_MIN) panel = PANEL_ROWS_MIN;
  // Panels of one size, and of whole tiles of three rows.
  const int64_t panels = (m + panel - 1) / panel;
  panel = (m + panels * 3 - 1) / (panels * 3) * 3;
  for (int64_t i = 0; i < m; i += panel) {
    const int64_t rows = m - i < panel ? m - i : panel;
    const float* from = a + i * lda;
    float* to = c + i * ldc;
    int64_t j = 0;
    // One row has no second use of b: eight rows of it at once, so that the sums do not wait for
    // one another. The processor follows the eight streams; asking for them was slower.
    for (; rows == 1 && j + 8 <= n; j += 8) {
      tile_nt<B, 1, 8>(args, from, b + j * args.ldb, to + j);
    }
    for (; B::BYTES == 2 && rows >= WIDEN_ROWS && j + 4 <= n; j += 4) {
      fetch<B, 4>(args, b + (j + 4) * args.ldb);
      wide_bf16_nt(args, rows, from, b + j * args.ldb, to + j);
    }
    for (; j + 4 <= n; j += 4) {
      fetch<B, 4>(args, b + (j + 4) * args.ldb);
      strip_nt<B, 4>(args, rows, from, b + j * args.ldb, to + j);
    }
    const char* rest = b + j * args.ldb;
    if (n - j == 3) strip_nt<B, 3>(args, rows, from, rest, to + j);
    if (n - j == 2) strip_nt<B, 2>(args, rows, from, rest, to + j);
    if (n - j == 1) strip_nt<B, 1>(args, rows, from, rest, to + j);
  }
}

// ---- c = a b: lanes along n ------------------------------------------------------------------

struct NnArgs {
  int64_t k;
  int64_t lda;  // elements
  int64_t ldb;  // bytes
  int64_t ldc;  // elements
  bool add;
  int64_t part;  // columns of the last vector when it is not full
};

// M rows with N vectors of columns, the last of them `part` wide when PART. l ascending.
template <class B, int M, int N, bool PART>
void tile_nn(const NnArgs& args, const float* a, const char* b, float* c) {
  __m256 sums[M][N];
  for (int i = 0; i < M; i++) {
    for (int j = 0; j < N; j++) {
      const char* from = reinterpret_cast<const char*>(c + i * args.ldc + j * 8);
      if (!args.add) {
        sums[i][j] = _mm256_setzero_ps();
      } else if (PART && j == N - 1) {
        sums[i][j] = LoadF32::part(from, args.part);
      } else {
        sums[i][j] = LoadF32::all(from);
      }
    }
  }
  for (int64_t l = 0; l < args.k; l++) {
    __m256 columns[N];
    for (int j = 0; j < N; j++) {
      const char* from = b + l * args.ldb + j * 8 * B::BYTES;
      columns[j] = PART && j == N - 1 ? B::part(from, args.part) : B::all(from);
    }
    for (int i = 0; i < M; i++) {
      const __m256 row = _mm256_set1_ps(a[i * args.lda + l]);
      for (int j = 0; j < N; j++) sums[i][j] = _mm256_fmadd_ps(row, columns[j], sums[i][j]);
    }
  }
  for (int i = 0; i < M; i++) {
    for (int j = 0; j < N; j++) {
      float* to = c + i * args.ldc + j * 8;
      if (PART && j == N - 1) {
        _mm256_maskstore_ps(to, first_lanes(args.part), sums[i][j]);
      } else {
        _mm256_storeu_ps(to, sums[i][j]);
      }
    }
  }
}

// N vectors of columns with all m rows: sixes, then fours to ones.
template <class B, int N, bool PART>
void strip_nn(const NnArgs& args, int64_t m, const float* a, const char* b, float* c) {
  int64_t i = 0;
  for (; m - i >= 6; i += 6) {
    tile_nn<B, 6, N, PART>(args, a + i * args.lda, b, c + i * args.ldc);
  }
  if (m - i >= 4) {
    tile_nn<B, 4, N, PART>(args, a + i * args.lda, b, c + i * args.ldc);
    i += 4;
  }
  if (m - i >= 2) {
    tile_nn<B, 2, N, PART>(args, a + i * args.lda, b, c + i * args.ldc);
    i += 2;
  }
  if (i < m) tile_nn<B, 1, N, PART>(args, a + i * args.lda, b, c + i * args.ldc);
}

// One row: c stays in the first-level cache and b is read in the order of memory, L rows at a
// time.
template <class B, int L>
void rows_nn(const NnArgs& args, int64_t n, const float* a, const char* b, float* c, bool add) {
  __m256 factors[L];
  for (int l = 0; l < L; l++) factors[l] = _mm256_set1_ps(a[l]);
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
    __m256 sum = add ? _mm256_loadu_ps(c + j) : _mm256_setzero_ps();
    for (int l = 0; l < L; l++) {
      sum = _mm256_fmadd_ps(factors[l], B::all(b + l * args.ldb + j * B::BYTES), sum);
    }
    _mm256_storeu_ps(c + j, sum);
  }
  if (j == n) return;
  __m256 sum =
      add ? LoadF32::part(reinterpret_cast<const char*>(c + j), n - j) : _mm256_setzero_ps();
  for (int l = 0; l < L; l++) {
    sum = _mm256_fmadd_ps(factors[l], B::part(b + l * args.ldb + j * B::BYTES, n - j), sum);
  }
  _mm256_maskstore_ps(c + j, first_lanes(n - j), sum);
}

template <class B>
void gemm_nn(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const char* b,
             int64_t ldb, float* c, int64_t ldc, bool add) {
  const NnArgs args{k, lda, ldb * B::BYTES, ldc, add, n % 8};
  if (m == 1) {
    int64_t l = 0;
    for (; l + 8 <= k; l += 8) rows_nn<B, 8>(args, n, a + l, b + l * args.ldb, c, add || l > 0);
    for (; l < k; l++) rows_nn<B, 1>(args, n, a + l, b + l * args.ldb, c, add || l > 0);
    return;
  }
  int64_t j = 0;
  for (; j + 16 <= n; j += 16) strip_nn<B, 2, false>(args, m, a, b + j * B::BYTES, c + j);
  if (n - j > 8) {
    strip_nn<B, 2, true>(args, m, a, b + j * B::BYTES, c + j);
  } else if (n - j == 8) {
    strip_nn<B, 1, false>(args, m, a, b + j * B::BYTES, c + j);
  } else if (n > j) {
    strip_nn<B, 1, true>(args, m, a, b + j * B::BYTES, c + j);
  }
}

}  // namespace

void gemm_nt_avx2(int32_t b_dtype, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
                  const void* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  const char* bytes = static_cast<const char*>(b);
  if (b_dtype == MOELA_BF16) return gemm_nt<LoadBf16>(m, n, k, a, lda, bytes, ldb, c, ldc, add);
  gemm_nt<LoadF32>(m, n, k, a, lda, bytes, ldb, c, ldc, add);
}

void gemm_nn_avx2(int32_t b_dtype, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
                  const void* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  const char* bytes = static_cast<const char*>(b);
  if (b_dtype == MOELA_BF16) return gemm_nn<LoadBf16>(m, n, k, a, lda, bytes, ldb, c, ldc, add);
  gemm_nn<LoadF32>(m, n, k, a, lda, bytes, ldb, c, ldc, add);
}

}  // namespace moela

#endif
