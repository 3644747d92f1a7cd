// What the products in AVX2 with lanes along k share. Internal linkage: see avx2.h.
#pragma once

#include "avx2.h"

namespace moela {
namespace {

// Rows of `a` taken at a time, so that they stay in the second-level cache while all of b goes by;
// but not so few that a small batch reads b from memory twice.
constexpr int64_t PANEL_BYTES = 320 * 1024;
constexpr int64_t PANEL_ROWS_MIN = 12;

// From this many rows on, a strip of bf16 is widened to f32 once, CHUNK of k at a time, instead of
// anew for each tile. The sums of a panel's rows wait between chunks as they are. The rows of a
// chunk lie a little further apart, as multiples of 4 KiB would share the same few lines of cache.
constexpr int64_t WIDEN_ROWS = 9;
constexpr int64_t CHUNK = 640;
constexpr int64_t WIDE_STRIDE = CHUNK + 16;
constexpr int64_t WAITING_ROWS = 168;
static_assert(PANEL_BYTES / (4 * (CHUNK + 1)) + 3 <= WAITING_ROWS, "panels of several chunks");

struct NtArgs {
  int64_t k;
  int64_t lda;  // elements
  int64_t ldb;  // bytes
  int64_t ldc;  // elements
  bool add;
};

// M rows of a with N rows of b, over k elements: eight partial sums an element of c, k ascending
// by eight, the tail filled with zeros.
template <class B, int M, int N>
__attribute__((always_inline)) inline void accumulate(int64_t k, const float* a, int64_t lda,
                                                      const char* b, int64_t ldb,
                                                      __m256 (&sums)[M][N]) {
  int64_t l = 0;
  for (; l + 8 <= k; l += 8) {
    __m256 rows[M];
    for (int i = 0; i < M; i++) rows[i] = _mm256_loadu_ps(a + i * lda + l);
    for (int j = 0; j < N; j++) {
      const __m256 column = B::all(b + j * ldb + l * B::BYTES);
      for (int i = 0; i < M; i++) sums[i][j] = _mm256_fmadd_ps(rows[i], column, sums[i][j]);
    }
  }
  if (l == k) return;
  __m256 rows[M];
  for (int i = 0; i < M; i++) {
    rows[i] = LoadF32::part(reinterpret_cast<const char*>(a + i * lda + l), k - l);
  }
  for (int j = 0; j < N; j++) {
    const __m256 column = B::part(b + j * ldb + l * B::BYTES, k - l);
    for (int i = 0; i < M; i++) sums[i][j] = _mm256_fmadd_ps(rows[i], column, sums[i][j]);
  }
}

// The eight partial sums of each element become one, by a fixed tree.
template <int M, int N>
__attribute__((always_inline)) inline void finish(const NtArgs& args, const __m256 (&sums)[M][N],
                                                  float* c) {
  for (int i = 0; i < M; i++) {
    float* to = c + i * args.ldc;
    if (N % 4 == 0) {
      for (int j = 0; j < N; j += 4) {
        __m128 four = lane_sums(sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]);
        if (args.add) four = _mm_add_ps(_mm_loadu_ps(to + j), four);
        _mm_storeu_ps(to + j, four);
      }
    } else {
      for (int j = 0; j < N; j++) {
        const float sum = lane_sum(sums[i][j]);
        to[j] = args.add ? to[j] + sum : sum;
      }
    }
  }
}

template <int M, int N>
__attribute__((always_inline)) inline void clear(__m256 (&sums)[M][N]) {
  for (int i = 0; i < M; i++) {
    for (int j = 0; j < N; j++) sums[i][j] = _mm256_setzero_ps();
  }
}

template <int M>
struct Rows {
  static constexpr int COUNT = M;
};

// Calls tile(row, Rows) for tiles of three rows and two: a single row is left only when m is 1.
template <class Tile>
__attribute__((always_inline)) inline void row_tiles(int64_t m, const Tile& tile) {
  int64_t i = 0;
  for (; m - i >= 5 || m - i == 3; i += 3) tile(i, Rows<3>{});
  for (; m - i >= 2; i += 2) tile(i, Rows<2>{});
  if (i < m) tile(i, Rows<1>{});
}

// Four rows of b with m rows of a, at least WIDEN_ROWS or so: the rows of b are turned into f32
// once. widen(j, begin, count, to) writes columns [begin, begin + count) of row j, and zeros up to
// the next multiple of 8.
template <class Widen>
__attribute__((always_inline)) inline void wide_strip_nt(const NtArgs& args, int64_t m,
                                                         const float* a, float* c,
                                                         const Widen& widen) {
  constexpr int N = 4;
  alignas(64) float wide[N * WIDE_STRIDE];
  __m256 waiting[WAITING_ROWS][N];
  for (int64_t begin = 0; begin < args.k; begin += CHUNK) {
    const bool first = begin == 0, last = args.k - begin <= CHUNK;
    const int64_t count = last ? args.k - begin : CHUNK;
    for (int j = 0; j < N; j++) widen(j, begin, count, wide + j * WIDE_STRIDE);
    row_tiles(m, [&](int64_t row, auto rows) {
      constexpr int M = rows.COUNT;
      __m256 sums[M][N];
      clear(sums);
      for (int i = 0; !first && i < M; i++) {
        for (int j = 0; j < N; j++) sums[i][j] = waiting[row + i][j];
      }
      accumulate<LoadF32>(count, a + row * args.lda + begin, args.lda,
                          reinterpret_cast<const char*>(wide), WIDE_STRIDE * 4, sums);
      for (int i = 0; !last && i < M; i++) {
        for (int j = 0; j < N; j++) waiting[row + i][j] = sums[i][j];
      }
      if (last) finish(args, sums, c + row * args.ldc);
    });
  }
}

}  // namespace
}  // namespace moela
