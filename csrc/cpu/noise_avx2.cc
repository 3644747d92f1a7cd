// Philox4x32-10 on eight counters at once: see philox.h.
#include <immintrin.h>

#include "cpu/noise.h"

namespace moela {
namespace {

// The high and low halves of the eight products a * b.
struct Product {
  __m256i high, low;
};

inline Product multiply(__m256i a, __m256i b) {
  const __m256i even = _mm256_mul_epu32(a, b);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), b);
  return {_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa),
          _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa)};
}

}  // namespace

void noise_words_avx2(uint64_t seed, uint32_t index, const Candidate* kept, uint32_t* words) {
  alignas(32) int32_t tokens[NOISE_BLOCK];
  for (int64_t i = 0; i < NOISE_BLOCK; i++) tokens[i] = kept[i].token;
  const __m256i factor0 = _mm256_set1_epi32(static_cast<int32_t>(0xd2511f53));
  const __m256i factor1 = _mm256_set1_epi32(static_cast<int32_t>(0xcd9e8d57));
  __m256i word0 = _mm256_set1_epi32(static_cast<int32_t>(index));
  __m256i word1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(tokens));
  __m256i word2 = _mm256_setzero_si256();
  __m256i word3 = _mm256_setzero_si256();
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; round++) {
    const Product product0 = multiply(word0, factor0);
    const Product product1 = multiply(word2, factor1);
    word0 = _mm256_xor_si256(_mm256_xor_si256(product1.high, word1),
                             _mm256_set1_epi32(static_cast<int32_t>(key0)));
    word2 = _mm256_xor_si256(_mm256_xor_si256(product0.high, word3),
                             _mm256_set1_epi32(static_cast<int32_t>(key1)));
    word1 = product1.low;
    word3 = product0.low;
    key0 += 0x9e3779b9;
    key1 += 0xbb67ae85;
  }
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), word0);
}

}  // namespace moela
