// The AVX2 kernels over vectors, and the table; the matrix products are in gemm_avx2.cc.
#if defined(__x86_64__)

#include "avx2.h"

namespace moela {
namespace {

// A full vector of elements, and the last one of an array, whose other lanes read as zero.
struct Full {
  template <class Type>
  __m256 load(Type, const void* at) const {
    return Type::all(static_cast<const char*>(at));
  }
  void store(float* at, __m256 x) const { _mm256_storeu_ps(at, x); }
  void store_bf16(void* at, __m128i x) const { _mm_storeu_si128(static_cast<__m128i*>(at), x); }
  __m256 keep(__m256 x) const { return x; }
};

struct Part {
  int64_t count;
  template <class Type>
  __m256 load(Type, const void* at) const {
    return Type::part(static_cast<const char*>(at), count);
  }
  void store(float* at, __m256 x) const { _mm256_maskstore_ps(at, first_lanes(count), x); }
  void store_bf16(void* at, __m128i x) const { memcpy(at, &x, count * 2); }
  __m256 keep(__m256 x) const { return _mm256_and_ps(x, _mm256_castsi256_ps(first_lanes(count))); }
};

constexpr LoadF32 F32{};

// Calls body(i, lanes) for the vectors of elements [begin, n).
template <class Body>
void vectors(int64_t begin, int64_t n, const Body& body) {
  int64_t i = begin;
  for (; i + 8 <= n; i += 8) body(i, Full{});
  if (i < n) body(i, Part{n - i});
}

// e^x to within 2 ulp (1 where the result is normal): x = i ln 2 + r with |r| <= ln 2 / 2, and a
// polynomial that is minimax for (e^r - 1 - r) / r^2 over that range. ln 2 is taken in two parts,
// the first so short that its product with i is exact; 2^i in two factors, as it may be subnormal.
__m256 exp(__m256 x) {
  // Beyond these every result is 0 or infinity. A NaN is the second operand, so it stays.
  x = _mm256_max_ps(_mm256_set1_ps(-104.f), x);
  x = _mm256_min_ps(_mm256_set1_ps(89.f), x);
  const __m256i i = _mm256_cvtps_epi32(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)));
  const __m256 whole = _mm256_cvtepi32_ps(i);
  __m256 r = _mm256_fnmadd_ps(whole, _mm256_set1_ps(0x1.62e400p-1f), x);
  r = _mm256_fnmadd_ps(whole, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
  __m256 p = _mm256_set1_ps(0x1.6a2352p-10f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.123a6cp-7f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.5558f4p-5f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.55549p-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.fffffcp-2f));
  p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r);
  p = _mm256_add_ps(p, _mm256_set1_ps(1));
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i half = _mm256_srai_epi32(i, 1);
  const __m256i rest = _mm256_sub_epi32(i, half);
  p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
  return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}

// Four sums side by side while 32 elements are left, then the rest to the first.
float sum_of_squares(int64_t n, const float* x) {
  __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                    _mm256_setzero_ps()};
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    for (int j = 0; j < 4; j++) {
      const __m256 value = _mm256_loadu_ps(x + i + j * 8);
      sums[j] = _mm256_fmadd_ps(value, value, sums[j]);
    }
  }
  vectors(i, n, [&](int64_t at, auto lanes) {
    const __m256 value = lanes.load(F32, x + at);
    sums[0] = _mm256_fmadd_ps(value, value, sums[0]);
  });
  return lane_sum(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
}

template <class Type>
void rms_norm_of(Type type, int64_t n, const float* x, const char* weight, float epsilon,
                 float* y) {
  const float mean = sum_of_squares(n, x) / static_cast<float>(n);
  const __m256 factor = _mm256_set1_ps(1 / __builtin_sqrtf(mean + epsilon));
  vectors(0, n, [&](int64_t i, auto lanes) {
    const __m256 normed = _mm256_mul_ps(lanes.load(F32, x + i), factor);
    lanes.store(y + i, _mm256_mul_ps(normed, lanes.load(type, weight + i * Type::BYTES)));
  });
}

void rms_norm(int64_t n, const float* x, int32_t w_dtype, const void* weight, float epsilon,
              float* y) {
  const char* bytes = static_cast<const char*>(weight);
  if (w_dtype == MOELA_BF16) return rms_norm_of(LoadBf16{}, n, x, bytes, epsilon, y);
  rms_norm_of(F32, n, x, bytes, epsilon, y);
}

void silu_mul(int64_t n, const float* gate, const float* up, float* y) {
  vectors(0, n, [&](int64_t i, auto lanes) {
    const __m256 g = lanes.load(F32, gate + i);
    const __m256 power = exp(_mm256_sub_ps(_mm256_setzero_ps(), g));
    const __m256 below = _mm256_add_ps(_mm256_set1_ps(1), power);
    lanes.store(y + i, _mm256_mul_ps(_mm256_div_ps(g, below), lanes.load(F32, up + i)));
  });
}

void scale(int64_t n, float factor, float* x) {
  vectors(0, n, [&](int64_t i, auto lanes) {
    lanes.store(x + i, _mm256_mul_ps(lanes.load(F32, x + i), _mm256_set1_ps(factor)));
  });
}

float max(int64_t n, const float* x) {
  float largest = -__builtin_inff();
  int64_t i = 0;
  if (n >= 8) {
    // Two at a time, the last vector first, as it may overlap its neighbour. A NaN among the new
    // elements leaves the largest so far.
    __m256 a = _mm256_set1_ps(largest);
    __m256 b = _mm256_max_ps(_mm256_loadu_ps(x + n - 8), a);
    for (; i + 16 <= n; i += 16) {
      a = _mm256_max_ps(_mm256_loadu_ps(x + i), a);
      b = _mm256_max_ps(_mm256_loadu_ps(x + i + 8), b);
    }
    if (i + 8 <= n) a = _mm256_max_ps(_mm256_loadu_ps(x + i), a);
    float lanes[8];
    _mm256_storeu_ps(lanes, _mm256_max_ps(a, b));
    for (float lane : lanes) largest = lane > largest ? lane : largest;
    i = n;
  }
  for (; i < n; i++) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

float exp_sum(int64_t n, float shift, float* x) {
  __m256 sum = _mm256_setzero_ps();
  vectors(0, n, [&](int64_t i, auto lanes) {
    const __m256 value = exp(_mm256_sub_ps(lanes.load(F32, x + i), _mm256_set1_ps(shift)));
    lanes.store(x + i, value);
    sum = _mm256_add_ps(sum, lanes.keep(value));
  });
  return lane_sum(sum);
}

// To nearest, ties to even: half of the last place, less one unless that place is odd. A NaN, which
// rounding could carry into infinity, stays one by its quiet bit.
__m128i to_bf16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i upper = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
  const __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
  const __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i result = _mm256_blendv_epi8(rounded, quiet, nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1));
}

void store(int32_t dtype, int64_t n, const float* from, void* to) {
  if (dtype != MOELA_BF16) {
    memcpy(to, from, n * sizeof(float));
    return;
  }
  char* bytes = static_cast<char*>(to);
  vectors(0, n, [&](int64_t i, auto lanes) {
    lanes.store_bf16(bytes + i * 2, to_bf16(lanes.load(F32, from + i)));
  });
}

void load(int32_t dtype, int64_t n, const void* from, float* to) {
  if (dtype != MOELA_BF16) {
    memcpy(to, from, n * sizeof(float));
    return;
  }
  const char* bytes = static_cast<const char*>(from);
  vectors(0, n, [&](int64_t i, auto lanes) {
    lanes.store(to + i, lanes.load(LoadBf16{}, bytes + i * 2));
  });
}

}  // namespace

const Kernels& avx2_kernels() {
  static constexpr Kernels kernels{MOELA_KERNELS_AVX2,
                                   gemm_nt_avx2,
                                   gemm_nn_avx2,
                                   gemm_nt_scaled_avx2,
                                   gemm_nn_scaled_avx2,
                                   packed_bytes_avx2,
                                   pack_avx2,
                                   gemm_packed_avx2,
                                   rms_norm,
                                   silu_mul,
                                   scale,
                                   max,
                                   exp_sum,
                                   store,
                                   load,
                                   nullptr};
  return kernels;
}

}  // namespace moela

#endif
