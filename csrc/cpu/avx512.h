// What the AVX-512 and AMX files share. Internal linkage: see avx2.h.
#pragma once

#include "packed_avx2.h"

namespace moela {

void gemm_nt_avx512(int32_t b_dtype, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
                    const void* b, int64_t ldb, float* c, int64_t ldc, bool add);
void gemm_nn_avx512(int32_t b_dtype, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
                    const void* b, int64_t ldb, float* c, int64_t ldc, bool add);
void gemm_nt_scaled_avx512(const WeightRows& b, int64_t m, int64_t n, const float* a, int64_t lda,
                           float* c, int64_t ldc, bool add);
int64_t packed_bytes_avx512(int32_t dtype, int64_t m, int64_t k);
void pack_avx512(int32_t dtype, int64_t m, int64_t k, const float* const* rows, char* out);
void gemm_packed_avx512(const WeightRows& b, int64_t m, int64_t n, const char* packed, float* c,
                        int64_t ldc, bool add);
int64_t packed_bytes_amx(int32_t dtype, int64_t m, int64_t k);
void pack_amx(int32_t dtype, int64_t m, int64_t k, const float* const* rows, char* out);
void gemm_packed_amx(const WeightRows& b, int64_t m, int64_t n, const char* packed, float* c,
                     int64_t ldc, bool add);
const TiledAttention& attention_amx();

namespace {

// Rows of a weight that are taken together where many rows of the input use them.
constexpr int64_t STRIP = 16;

#if defined(MOELA_EMULATE)
inline void hold(__m512i&) {}
#else
inline void hold(__m512i& sum) { __asm__("" : "+v"(sum)); }
#endif

inline __m512i load512(const void* at) { return _mm512_loadu_si512(at); }

// The first `count` lanes, all from 16 on.
inline __mmask16 first_lanes16(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1);
}

// Words of four bytes: lane j of rows[i] becomes lane i of rows[j].
inline void transpose16(__m512i (&rows)[16]) {
  __m512i two[16];
  for (int i = 0; i < 16; i += 2) {
    two[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    two[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  __m512i four[16];
  for (int i = 0; i < 16; i += 4) {
    four[i] = _mm512_unpacklo_epi64(two[i], two[i + 2]);
    four[i + 1] = _mm512_unpackhi_epi64(two[i], two[i + 2]);
    four[i + 2] = _mm512_unpacklo_epi64(two[i + 1], two[i + 3]);
    four[i + 3] = _mm512_unpackhi_epi64(two[i + 1], two[i + 3]);
  }
  // four[4 b + j]: of each quarter q of the columns, column 4 q + j of rows 4 b to 4 b + 3.
  for (int j = 0; j < 4; j++) {
    const __m512i low01 = _mm512_shuffle_i32x4(four[j], four[4 + j], 0x88);
    const __m512i high01 = _mm512_shuffle_i32x4(four[j], four[4 + j], 0xdd);
    const __m512i low23 = _mm512_shuffle_i32x4(four[8 + j], four[12 + j], 0x88);
    const __m512i high23 = _mm512_shuffle_i32x4(four[8 + j], four[12 + j], 0xdd);
    rows[j] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    rows[8 + j] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
    rows[4 + j] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    rows[12 + j] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
  }
}

// ---- few rows: sums of packed_avx2.h by VNNI ---------------------------------------------------

struct VnniInt8 {
  static constexpr int32_t DTYPE = MOELA_INT8;
  static constexpr int64_t GROUP_BYTES = 128;
  using Word = uint16_t;  // of scales

  static void prepare(RunScales&) {}
  // Eight parts of the sum of (w + 128) q over a group.
  static __m256i sum(const char* w, const int8_t* q, const RunScales&, int64_t) {
    const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
    const auto add = [&](__m256i to, int v) {
      return _mm256_dpbusd_epi32(to, _mm256_xor_si256(load256(w + v * 32), flip),
                                 load256(q + v * 32));
    };
    const __m256i zero = _mm256_setzero_si256();
    return _mm256_add_epi32(add(add(zero, 0), 1), add(add(zero, 2), 3));
  }
  static __m256i excess(__m256i, const int16_t* eights) {
    return _mm256_set1_epi32(16 * (eights[0] + eights[1] + eights[2] + eights[3]));
  }
};

struct VnniInt4 {
  static constexpr int32_t DTYPE = MOELA_INT4;
  static constexpr int64_t GROUP_BYTES = 64;
  using Word = uint32_t;

  static void prepare(RunScales& run) { int4_factors(false, run); }
  // Eight parts of the sum of factor (w + 8) q over group g of a run.
  static __m256i sum(const char* w, const int8_t* q, const RunScales& run, int64_t g) {
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i first = load256(w), second = load256(w + 32);
    // Fours are at most 4 * 15 * 127: they fit the lower halves that madd multiplies.
    const auto fours = [&](int v, __m256i nibbles) {
      return _mm256_madd_epi16(
          _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_and_si256(nibbles, mask),
                              load256(q + v * 32)),
          _mm256_set1_epi32(static_cast<int32_t>(run.factors[v][g])));
    };
    return _mm256_add_epi32(
        _mm256_add_epi32(fours(0, first), fours(1, _mm256_srli_epi16(first, 4))),
        _mm256_add_epi32(fours(2, second), fours(3, _mm256_srli_epi16(second, 4))));
  }
  static __m256i excess(__m256i words, const int16_t* eights) { return int4_excess(words, eights); }
};

// ---- a group of 16 rows of a weight as int8 ----------------------------------------------------

// NIBBLE_PRODUCTS[f][i] = (i - 8) f.
struct NibbleProducts {
  alignas(16) int8_t lanes[16][16];
  constexpr NibbleProducts() : lanes() {
    for (int f = 0; f < 16; f++) {
      for (int i = 0; i < 16; i++) lanes[f][i] = static_cast<int8_t>((i - 8) * f);
    }
  }
};
constexpr NibbleProducts NIBBLE_PRODUCTS;

// 128 values q * factor of INT4.
inline void unpack_int4_512(const char* from, uint32_t word, int8_t* to) {
  const __m512i mask = _mm512_set1_epi8(15);
  const __m512i bytes = load512(from);
  const auto table = [&](int first, int second) {
    const auto half = [&](int i) {
      return _mm256_broadcastsi128_si256(_mm_load_si128(
          reinterpret_cast<const __m128i*>(NIBBLE_PRODUCTS.lanes[word >> (16 + 4 * i) & 15])));
    };
    return _mm512_inserti64x4(_mm512_castsi256_si512(half(first)), half(second), 1);
  };
  const __m512i even = _mm512_shuffle_epi8(table(0, 2), _mm512_and_si512(bytes, mask));
  const __m512i odd =
      _mm512_shuffle_epi8(table(1, 3), _mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask));
  _mm512_storeu_si512(to, _mm512_shuffle_i64x2(even, odd, 0x44));
  _mm512_storeu_si512(to + 64, _mm512_shuffle_i64x2(even, odd, 0xee));
}

// Where 16 rows of a group lie as int8 [128], rows `stride` bytes apart, and their scales.
struct StripGroup {
  const int8_t* values;
  int64_t stride;
  alignas(64) float scales[STRIP];
};

// Rows [row, row + 16) of INT8 or INT4; from b's `rows` on they are zero. In place where that can
// be, else in `room` [16][128]. The caller takes AHEAD rows together.
template <class W, int64_t AHEAD>
void strip_group(const WeightRows& b, int64_t row, int64_t rows, int64_t g, int8_t* room,
                 StripGroup& group) {
  const int64_t row_bytes = weight_row_bytes(W::DTYPE, b.cols);
  const int64_t scale_bytes = scale_row_bytes(W::DTYPE, b.cols);
  const int64_t offset = g * W::GROUP_BYTES;
  const bool whole = offset + W::GROUP_BYTES <= row_bytes;
  const bool in_place = W::DTYPE == MOELA_INT8 && whole && rows >= STRIP;
  const char* from = b.data + row * row_bytes + offset;
  group.values = in_place ? reinterpret_cast<const int8_t*>(from) : room;
  group.stride = in_place ? row_bytes : GROUP;
  for (int64_t j = 0; j < STRIP; j++) {
    int8_t* to = room + j * GROUP;
    if (j >= rows) {
      group.scales[j] = 0;
      memset(to, 0, GROUP);
      continue;
    }
    const uint32_t word = load_at<typename W::Word>(b.scales + (row + j) * scale_bytes, g);
    group.scales[j] = bf16_to_f32(static_cast<uint16_t>(word));
    const char* values = from + j * row_bytes;
    // The same columns of the next rows, which come after these are done.
    _mm_prefetch(values + AHEAD * row_bytes, _MM_HINT_T1);
    if (W::GROUP_BYTES > 64) _mm_prefetch(values + AHEAD * row_bytes + 64, _MM_HINT_T1);
    if (in_place) continue;
    char tail[W::GROUP_BYTES];
    if (!whole) {
      memset(tail, 0, sizeof tail);
      memcpy(tail, values, row_bytes - offset);
      values = tail;
    }
    if (W::DTYPE == MOELA_INT4) {
      unpack_int4_512(values, word, to);
    } else {
      memcpy(to, values, GROUP);
    }
  }
}

}  // namespace
}  // namespace moela
