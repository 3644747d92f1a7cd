// AVX-512 on processors without it, for tests (MOELA_EMULATE): included before everything else of
// the AVX-512 and AMX files, it puts functions over AVX2 in the place of the intrinsics. They are
// SIMDe's (Debian: libsimde-dev), and what that lacks by the definitions in Intel's manual.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include <cstdint>
#include <cstring>

namespace moela {
namespace {

// A vector's elements as an array, and back.
template <class Element>
struct Lanes {
  Element at[64 / sizeof(Element)];
  Lanes() : at() {}
  explicit Lanes(__m512 from) { memcpy(at, &from, sizeof at); }
  explicit Lanes(__m512i from) { memcpy(at, &from, sizeof at); }
  __m512 floats() const {
    __m512 to;
    memcpy(&to, at, sizeof to);
    return to;
  }
  __m512i integers() const {
    __m512i to;
    memcpy(&to, at, sizeof to);
    return to;
  }
};

inline __m512 emulated_maskz_loadu_ps(__mmask16 mask, const void* from) {
  Lanes<float> lanes;
  for (int i = 0; i < 16; i++) {
    if (mask >> i & 1) memcpy(&lanes.at[i], static_cast<const char*>(from) + i * 4, 4);
  }
  return lanes.floats();
}

inline void emulated_mask_storeu_ps(void* to, __mmask16 mask, __m512 x) {
  const Lanes<float> lanes(x);
  for (int i = 0; i < 16; i++) {
    if (mask >> i & 1) memcpy(static_cast<char*>(to) + i * 4, &lanes.at[i], 4);
  }
}

inline __m512 emulated_cvtepi32_ps(__m512i x) {
  const Lanes<int32_t> from(x);
  Lanes<float> to;
  for (int i = 0; i < 16; i++) to.at[i] = static_cast<float>(from.at[i]);
  return to.floats();
}

inline __m512i emulated_cvtps_epi32(__m512 x) {
  const Lanes<float> from(x);
  Lanes<int32_t> to;
  for (int i = 0; i < 16; i++) to.at[i] = _mm_cvtss_si32(_mm_set_ss(from.at[i]));
  return to.integers();
}

inline __m512i emulated_cvtepu16_epi32(__m256i x) {
  uint16_t from[16];
  memcpy(from, &x, sizeof from);
  Lanes<uint32_t> to;
  for (int i = 0; i < 16; i++) to.at[i] = from[i];
  return to.integers();
}

inline __m512i emulated_shuffle_i64x2(__m512i a, __m512i b, int control) {
  const Lanes<int64_t> low(a), high(b);
  Lanes<int64_t> to;
  for (int quarter = 0; quarter < 4; quarter++) {
    const int from = control >> (2 * quarter) & 3;
    for (int i = 0; i < 2; i++) {
      to.at[quarter * 2 + i] = (quarter < 2 ? low : high).at[from * 2 + i];
    }
  }
  return to.integers();
}

inline __m256 emulated_extractf32x8_ps(__m512 x, int half) {
  const Lanes<float> lanes(x);
  return _mm256_loadu_ps(lanes.at + half * 8);
}

}  // namespace
}  // namespace moela

#undef _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_ps(mask, from) moela::emulated_maskz_loadu_ps(mask, from)
#undef _mm512_mask_storeu_ps
#define _mm512_mask_storeu_ps(to, mask, x) moela::emulated_mask_storeu_ps(to, mask, x)
#undef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps(x) moela::emulated_cvtepi32_ps(x)
#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32(x) moela::emulated_cvtps_epi32(x)
#undef _mm512_cvtepu16_epi32
#define _mm512_cvtepu16_epi32(x) moela::emulated_cvtepu16_epi32(x)
#undef _mm512_shuffle_i64x2
#define _mm512_shuffle_i64x2(a, b, control) moela::emulated_shuffle_i64x2(a, b, control)
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps(x, half) moela::emulated_extractf32x8_ps(x, half)
