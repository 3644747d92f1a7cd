// Products in AVX2 with weights of FP8 and INT8 taken as f32, value * scale (see kernels.h): the
// order of every sum is that of f32 weights (gemm_avx2.cc), whatever the number of rows.
#if defined(__x86_64__)

#include "formats.h"
#include "gemm_avx2.h"

namespace moela {
namespace {

// Eight elements as f32, but for a power of two that the scale makes up for.
struct RawFp8 {
  // As f16 with the same bits of exponent and mantissa, which is 2^-8 times the number: subnormals
  // come out right.
  static constexpr float GAIN = 256;
  static __m256 all(const char* at) {
    const __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
    return _mm256_cvtph_ps(
        _mm_and_si128(_mm_slli_epi16(wide, 7), _mm_set1_epi16(static_cast<int16_t>(0xbf80))));
  }
  static float scale(const WeightRows& b, int64_t row, int64_t group) {
    return load_at<float>(b.scales, row / GROUP * groups_of(b.cols) + group) * GAIN;
  }
};

struct RawInt8 {
  static __m256 all(const char* at) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
  }
  static float scale(const WeightRows& b, int64_t row, int64_t group) {
    return bf16_to_f32(load_at<uint16_t>(b.scales, row * groups_of(b.cols) + group));
  }
};

template <class Raw>
__m256 raw_part(const char* at, int64_t count) {
  char bytes[8] = {};
  memcpy(bytes, at, count);
  return Raw::all(bytes);
}

int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// One row of a with N rows of b from `row` on.
template <class Raw, int N>
void row_nt(const WeightRows& b, const NtArgs& args, int64_t row, const float* a, float* c) {
  const char* from = b.data + row * b.cols;
  __m256 sums[1][N];
  clear(sums);
  for (int64_t begin = 0; begin < b.cols; begin += GROUP) {
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

// Columns [begin, begin + count) of a row as f32, zeros up to the next multiple of 8; begin is one
// of GROUP.
template <class Raw>
void widen_row(const WeightRows& b, int64_t row, int64_t begin, int64_t count, float* to) {
  const char* from = b.data + row * b.cols + begin;
  for (int64_t group = 0; group < count; group += GROUP) {
    const __m256 scale = _mm256_set1_ps(Raw::scale(b, row, (begin + group) / GROUP));
    const int64_t end = at_most(group + GROUP, count);
    int64_t l = group;
    for (; l + 8 <= end; l += 8) {
      _mm256_storeu_ps(to + l, _mm256_mul_ps(Raw::all(from + l), scale));
    }
    if (l < end) {
      _mm256_storeu_ps(to + l, _mm256_mul_ps(raw_part<Raw>(from + l, end - l), scale));
    }
  }
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
                        widen_row<Raw>(b, b.first + j + row, begin, count, to);
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
        widen_row<Raw>(b, b.first + l + i, j, count, wide + i * WIDE_STRIDE);
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
