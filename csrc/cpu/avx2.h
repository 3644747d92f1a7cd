// What the AVX2 files share. Everything here has internal linkage: these files alone are compiled
// for AVX2, and a function of theirs that the linker picked for the whole library would end it on
// an older processor. For the same reason they use no templates of the standard library.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace moela {

void gemm_nt_avx2(int32_t b_dtype, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
                  const void* b, int64_t ldb, float* c, int64_t ldc, bool add);
void gemm_nn_avx2(int32_t b_dtype, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
                  const void* b, int64_t ldb, float* c, int64_t ldc, bool add);
void gemm_nt_scaled_avx2(const WeightRows& b, int64_t m, int64_t n, const float* a, int64_t lda,
                         float* c, int64_t ldc, bool add);
void gemm_nn_scaled_avx2(const WeightRows& b, int64_t m, int64_t k, const float* a, int64_t lda,
                         float* c, int64_t ldc, bool add);
int64_t packed_bytes_avx2(int32_t dtype, int64_t m, int64_t k);
void pack_avx2(int32_t dtype, int64_t m, int64_t k, const float* const* rows, char* out);
void gemm_packed_avx2(const WeightRows& b, int64_t m, int64_t n, const char* packed, float* c,
                      int64_t ldc, bool add);

namespace {

// The first `count` lanes, all from 8 on.
inline __m256i first_lanes(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// To be called where a sum of integers has grown: the compiler may not add in another order, which
// would take more registers than there are.
inline void hold(__m256i& sum) { __asm__("" : "+x"(sum)); }

// Eight elements as f32, or the first `count` < 8 and zeros. Memory may be unaligned.
struct LoadF32 {
  static constexpr int64_t BYTES = 4;
  static __m256 all(const char* at) { return _mm256_loadu_ps(reinterpret_cast<const float*>(at)); }
  static __m256 part(const char* at, int64_t count) {
    return _mm256_maskload_ps(reinterpret_cast<const float*>(at), first_lanes(count));
  }
};

struct LoadBf16 {
  static constexpr int64_t BYTES = 2;
  // bf16 is the upper half of an f32: exact.
  static __m256 widen(__m128i halves) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
  static __m256 all(const char* at) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  }
  static __m256 part(const char* at, int64_t count) {
    uint16_t halves[8] = {};
    memcpy(halves, at, count * 2);
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
  }
};

// Sums of neighbouring lanes: of a in the lower half of each 128 bits, of b in the upper. What
// _mm256_hadd_ps gives, in fewer cycles.
inline __m256 add_pairs(__m256 a, __m256 b) {
  return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}
inline __m256i add_pairs(__m256i a, __m256i b) {
  const __m256 x = _mm256_castsi256_ps(a), y = _mm256_castsi256_ps(b);
  return _mm256_add_epi32(_mm256_castps_si256(_mm256_shuffle_ps(x, y, 0x88)),
                          _mm256_castps_si256(_mm256_shuffle_ps(x, y, 0xdd)));
}

// The sum of each of four vectors: lanes by ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)).
inline __m128 lane_sums(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 fours = add_pairs(add_pairs(a, b), add_pairs(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(fours), _mm256_extractf128_ps(fours, 1));
}

// The same sum of one vector, by the same tree.
inline float lane_sum(__m256 a) { return _mm_cvtss_f32(lane_sums(a, a, a, a)); }

}  // namespace
}  // namespace moela
