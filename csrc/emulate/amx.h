// AMX, and AVX-512's conversion to bf16, on processors without them, for tests (MOELA_EMULATE).
// Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2: TDPBSSD, TDPBF16PS,
// VCVTNE2PS2BF16.
#pragma once

#include "avx512.h"

namespace moela {
namespace {

struct EmulatedTiles {
  bool configured;
  alignas(64) char rows[8][16][64];
};
thread_local EmulatedTiles emulated;

// Eight tiles of 16 rows of 64 bytes are what the kernels ask for.
inline void emulated_loadconfig(const void* config) {
  const uint8_t* bytes = static_cast<const uint8_t*>(config);
  bool valid = bytes[0] == 1 && bytes[1] == 0;
  for (int t = 0; t < 8; t++) {
    uint16_t row_bytes;
    memcpy(&row_bytes, bytes + 16 + 2 * t, 2);
    valid = valid && row_bytes == 64 && bytes[48 + t] == 16;
  }
  if (!valid) __builtin_trap();
  memset(&emulated, 0, sizeof emulated);
  emulated.configured = true;
}

inline void emulated_release() { emulated.configured = false; }

inline char (*emulated_tile(int tile))[64] {
  // As the processor does without a configuration.
  if (!emulated.configured) __builtin_trap();
  return emulated.rows[tile];
}

inline void emulated_zero(int tile) { memset(emulated_tile(tile), 0, 1024); }

inline void emulated_loadd(int tile, const void* from, int64_t stride) {
  for (int i = 0; i < 16; i++) {
    memcpy(emulated_tile(tile)[i], static_cast<const char*>(from) + i * stride, 64);
  }
}

inline void emulated_stored(int tile, void* to, int64_t stride) {
  for (int i = 0; i < 16; i++) {
    memcpy(static_cast<char*>(to) + i * stride, emulated_tile(tile)[i], 64);
  }
}

template <class T>
T emulated_at(const char* row, int i) {
  T value;
  memcpy(&value, row + i * static_cast<int>(sizeof(T)), sizeof value);
  return value;
}

inline void emulated_dpbssd(int sums, int a, int b) {
  char (*to)[64] = emulated_tile(sums);
  for (int m = 0; m < 16; m++) {
    for (int n = 0; n < 16; n++) {
      int32_t sum = emulated_at<int32_t>(to[m], n);
      for (int k = 0; k < 16; k++) {
        for (int i = 0; i < 4; i++) {
          sum += emulated_at<int8_t>(emulated_tile(a)[m], 4 * k + i) *
                 emulated_at<int8_t>(emulated_tile(b)[k], 4 * n + i);
        }
      }
      memcpy(to[m] + 4 * n, &sum, 4);
    }
  }
}

inline float emulated_bf16(const char* row, int i) {
  const uint32_t bits = static_cast<uint32_t>(emulated_at<uint16_t>(row, i)) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// Even and odd products in sums of their own, each product added with one rounding; both sums, and
// their sum added to what is there. To nearest even, subnormals count as zero, whatever MXCSR says.
inline void emulated_dpbf16ps(int sums, int a, int b) {
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(0x9fc0);
  char (*to)[64] = emulated_tile(sums);
  for (int m = 0; m < 16; m++) {
    float even[16] = {}, odd[16] = {};
    for (int k = 0; k < 16; k++) {
      const float x_even = emulated_bf16(emulated_tile(a)[m], 2 * k);
      const float x_odd = emulated_bf16(emulated_tile(a)[m], 2 * k + 1);
      for (int n = 0; n < 16; n++) {
        const char* row = emulated_tile(b)[k];
        even[n] = __builtin_fmaf(x_even, emulated_bf16(row, 2 * n), even[n]);
        odd[n] = __builtin_fmaf(x_odd, emulated_bf16(row, 2 * n + 1), odd[n]);
      }
    }
    for (int n = 0; n < 16; n++) {
      const float sum = emulated_at<float>(to[m], n) + (even[n] + odd[n]);
      memcpy(to[m] + 4 * n, &sum, 4);
    }
  }
  _mm_setcsr(saved);
}

// To nearest even; subnormals count as zero.
inline uint16_t emulated_round(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint32_t exponent = bits >> 23 & 0xff, sign = bits >> 31;
  if (exponent == 0) return static_cast<uint16_t>(sign << 15);
  if (exponent == 0xff) {
    return static_cast<uint16_t>(bits >> 16 | ((bits & 0x7fffff) ? 0x40 : 0));
  }
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline __m512bh emulated_cvtne2ps_pbh(__m512 high, __m512 low) {
  const Lanes<float> from[2] = {Lanes<float>(low), Lanes<float>(high)};
  uint16_t rounded[32];
  for (int i = 0; i < 32; i++) rounded[i] = emulated_round(from[i / 16].at[i % 16]);
  __m512bh to;
  memcpy(&to, rounded, sizeof to);
  return to;
}

}  // namespace
}  // namespace moela

#undef _mm512_cvtne2ps_pbh
#define _mm512_cvtne2ps_pbh(high, low) moela::emulated_cvtne2ps_pbh(high, low)
#undef _tile_loadconfig
#define _tile_loadconfig(config) moela::emulated_loadconfig(config)
#undef _tile_release
#define _tile_release() moela::emulated_release()
#undef _tile_zero
#define _tile_zero(tile) moela::emulated_zero(tile)
#undef _tile_loadd
#define _tile_loadd(tile, from, stride) moela::emulated_loadd(tile, from, stride)
#undef _tile_stored
#define _tile_stored(tile, to, stride) moela::emulated_stored(tile, to, stride)
#undef _tile_dpbssd
#define _tile_dpbssd(sums, a, b) moela::emulated_dpbssd(sums, a, b)
#undef _tile_dpbf16ps
#define _tile_dpbf16ps(sums, a, b) moela::emulated_dpbf16ps(sums, a, b)
