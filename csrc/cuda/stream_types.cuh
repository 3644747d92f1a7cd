// The stream family of products: one group of 128 columns of K for 16 rows of a weight and 8
// tokens.
//
// Weights are the A operand of mma.sync, read from memory in 16-byte pieces that are already in the
// order of a fragment: K is permuted within a group, alike for A and B, so that a lane's 16 bytes
// hold just its own elements. Lane l has rows l / 4 and l / 4 + 8 of the tile (A), token l / 4 (B)
// and, of the result, rows l / 4 and l / 4 + 8 at tokens 2 (l % 4) and 2 (l % 4) + 1.
//
// The order of summation is the same for every number of rows: MMAs of a group in ascending order
// of K from zero, the group's sum times its scales rounded to f32, groups added in ascending order.
#pragma once

#include <cstdint>

#include "cuda/launch.h"

namespace moela::cuda {

constexpr int STREAM_GROUP = 128;
constexpr int STREAM_TILE = 16;

__device__ __forceinline__ float bf16_value(uint32_t bits) { return __uint_as_float(bits << 16); }

// Four E4M3 bytes as bf16: elements 0 and 1 in `low`, 2 and 3 in `high`. Exact: the bits are moved
// to where bf16 has them, and the difference of exponent biases, 2^120, is multiplied back.
__device__ __forceinline__ void bf16_of_fp8(uint32_t bytes, uint32_t& low, uint32_t& high) {
  const uint32_t order = __byte_perm(bytes, 0, 0x3120);
  const uint32_t first = order << 8;
  constexpr uint32_t FACTOR = 0x7b807b80, ZERO = 0x80008000;
  const uint32_t l = (first & 0x80008000) | ((first & 0x7f007f00) >> 4);
  const uint32_t h = (order & 0x80008000) | ((order & 0x7f007f00) >> 4);
  low = fma_bf16_pair(l, FACTOR, ZERO);
  high = fma_bf16_pair(h, FACTOR, ZERO);
}

// What differs between types. PIECES: 16-byte pieces of a lane, a group: piece p is of row half
// p % 2, bytes 64 (p / 2) + 16 (lane % 4) of the row's GROUP_BYTES. X_BYTES: of a prepared token's
// element. A group's product is made in
// PARTS, each of B pieces [b_first, b_end).
template <int DTYPE>
struct StreamType;

template <>
struct StreamType<MOELA_BF16> {
  static constexpr int GROUP_BYTES = 256, PIECES = 8, X_BYTES = 2;
  static constexpr bool INTEGER = false, SCALED = false;
  using Sum = float;
  static constexpr int B_PIECES = 4;

  // Bytes into a token's group that this lane's B piece i begins at.
  __device__ static int b_offset(int i, int t) { return i * 64 + t * 16; }
  static constexpr int PARTS = 4;
  __host__ __device__ static constexpr int b_first(int part) { return part; }
  __host__ __device__ static constexpr int b_end(int part) { return part + 1; }
  __device__ static void product(int i, Sum (&c)[4], const uint4 (&a)[PIECES], const uint4 (&b)[4],
                                 uint32_t, uint32_t, int) {
    mma_bf16(c, a[2 * i].x, a[2 * i + 1].x, a[2 * i].y, a[2 * i + 1].y, b[i].x, b[i].y);
    mma_bf16(c, a[2 * i].z, a[2 * i + 1].z, a[2 * i].w, a[2 * i + 1].w, b[i].z, b[i].w);
  }
};

template <>
struct StreamType<MOELA_FP8> {
  static constexpr int GROUP_BYTES = 128, PIECES = 4, X_BYTES = 2;
  static constexpr bool INTEGER = false, SCALED = true;
  using Sum = float;
  static constexpr int B_PIECES = 4;

  __device__ static int b_offset(int i, int t) { return (i / 2) * 128 + t * 32 + (i % 2) * 16; }
  __device__ static void quarter(Sum (&c)[4], uint32_t a, uint32_t a8, uint32_t b0, uint32_t b1) {
    uint32_t low, high, low8, high8;
    bf16_of_fp8(a, low, high);
    bf16_of_fp8(a8, low8, high8);
    mma_bf16(c, low, low8, high, high8, b0, b1);
  }
  static constexpr int PARTS = 2;
  __host__ __device__ static constexpr int b_first(int part) { return 2 * part; }
  __host__ __device__ static constexpr int b_end(int part) { return 2 * part + 2; }
  __device__ static void product(int i, Sum (&c)[4], const uint4 (&a)[PIECES], const uint4 (&b)[4],
                                 uint32_t, uint32_t, int) {
    quarter(c, a[2 * i].x, a[2 * i + 1].x, b[2 * i].x, b[2 * i].y);
    quarter(c, a[2 * i].y, a[2 * i + 1].y, b[2 * i].z, b[2 * i].w);
    quarter(c, a[2 * i].z, a[2 * i + 1].z, b[2 * i + 1].x, b[2 * i + 1].y);
    quarter(c, a[2 * i].w, a[2 * i + 1].w, b[2 * i + 1].z, b[2 * i + 1].w);
  }
  __device__ static float scale(uint32_t bits, int64_t) { return __uint_as_float(bits); }
};

template <>
struct StreamType<MOELA_INT8> {
  static constexpr int GROUP_BYTES = 128, PIECES = 4, X_BYTES = 1;
  static constexpr bool INTEGER = true, SCALED = true;
  using Sum = int;
  static constexpr int B_PIECES = 2;

  __device__ static int b_offset(int i, int t) { return i * 64 + t * 16; }
  static constexpr int PARTS = 2;
  __host__ __device__ static constexpr int b_first(int part) { return part; }
  __host__ __device__ static constexpr int b_end(int part) { return part + 1; }
  __device__ static void product(int i, Sum (&c)[4], const uint4 (&a)[PIECES], const uint4 (&b)[2],
                                 uint32_t, uint32_t, int) {
    mma_s8(c, a[2 * i].x, a[2 * i + 1].x, a[2 * i].y, a[2 * i + 1].y, b[i].x, b[i].y);
    mma_s8(c, a[2 * i].z, a[2 * i + 1].z, a[2 * i].w, a[2 * i + 1].w, b[i].z, b[i].w);
  }
  // `index` of the scale among the row's: two lie in four bytes.
  __device__ static float scale(uint32_t bits, int64_t index) {
    return bf16_value(index % 2 ? bits >> 16 : bits & 0xffff);
  }
};

template <>
struct StreamType<MOELA_INT4> {
  static constexpr int GROUP_BYTES = 64, PIECES = 2, X_BYTES = 1;
  static constexpr bool INTEGER = true, SCALED = true;
  using Sum = int;
  static constexpr int B_PIECES = 2;

  // A lane's 16 bytes hold 16 columns in their low nibbles and those 32 further on in the high.
  __device__ static int b_offset(int i, int t) { return (t / 2) * 64 + (t % 2) * 16 + i * 32; }
  // (q + 8) f + 128 - 8 f = 128 + q f fits in a byte; flipping its top bit makes it q f.
  __device__ static uint32_t multiply(uint32_t nibbles, uint32_t factor) {
    return (nibbles * factor + (128 - 8 * factor) * 0x01010101u) ^ 0x80808080u;
  }
  __device__ static void quarter(Sum (&c)[4], uint32_t a, uint32_t a8, uint32_t low, uint32_t low8,
                                 uint32_t high, uint32_t high8, uint32_t b0, uint32_t b1) {
    constexpr uint32_t MASK = 0x0f0f0f0f;
    mma_s8(c, multiply(a & MASK, low), multiply(a8 & MASK, low8), multiply((a >> 4) & MASK, high),
           multiply((a8 >> 4) & MASK, high8), b0, b1);
  }
  static constexpr int PARTS = 1;
  __host__ __device__ static constexpr int b_first(int) { return 0; }
  __host__ __device__ static constexpr int b_end(int) { return 2; }
  __device__ static void product(int, Sum (&c)[4], const uint4 (&a)[PIECES], const uint4 (&b)[2],
                                 uint32_t scale, uint32_t scale8, int t) {
    const int shift = 16 + (t / 2) * 8;
    const uint32_t low = scale >> shift & 15, high = scale >> (shift + 4) & 15;
    const uint32_t low8 = scale8 >> shift & 15, high8 = scale8 >> (shift + 4) & 15;
    quarter(c, a[0].x, a[1].x, low, low8, high, high8, b[0].x, b[1].x);
    quarter(c, a[0].y, a[1].y, low, low8, high, high8, b[0].y, b[1].y);
    quarter(c, a[0].z, a[1].z, low, low8, high, high8, b[0].z, b[1].z);
    quarter(c, a[0].w, a[1].w, low, low8, high, high8, b[0].w, b[1].w);
  }
  __device__ static float scale(uint32_t bits, int64_t) { return bf16_value(bits & 0xffff); }
};

__device__ __forceinline__ float tensor_at(const Tensor& in, int64_t i) {
  if (in.dtype == MOELA_F32) return static_cast<const float*>(in.data)[i];
  return bf16_value(static_cast<const uint16_t*>(in.data)[i]);
}

// Elements [i, i + 4) of a row of k, zero past its end; i and k are multiples of four, and the row
// begins on four elements.
__device__ __forceinline__ float4 load4(const Tensor& in, int64_t i, int64_t k) {
  float4 v{0, 0, 0, 0};
  if (i < k) {
    if (in.dtype == MOELA_F32) {
      v = *reinterpret_cast<const float4*>(static_cast<const float*>(in.data) + i);
    } else {
      const uint2 half = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(in.data) + i);
      v = {bf16_value(half.x & 0xffff), __uint_as_float(half.x & 0xffff0000u),
           bf16_value(half.y & 0xffff), __uint_as_float(half.y & 0xffff0000u)};
    }
  }
  return v;
}

__device__ __forceinline__ float silu_mul(float gate, float up) {
  return __fmul_rn(__fdiv_rn(gate, 1.0f + expf(-gate)), up);
}

// A warp's 128 elements of a group, four a lane: round to nearest even of x * (127 / max|x|),
// packed, and the scale max|x| / 127. As on the CPU, groups so small that the factor would be
// infinite become zeros, and in one that is not finite the scale is NaN. Magnitudes are compared as
// bits: NaN is above all.
__device__ __forceinline__ uint32_t quantize_group(const float4& v, float& scale) {
  const auto magnitude = [](float x) { return __float_as_uint(x) & 0x7fffffff; };
  const uint32_t bits = __reduce_max_sync(
      0xffffffff, max(max(magnitude(v.x), magnitude(v.y)), max(magnitude(v.z), magnitude(v.w))));
  const float largest = __uint_as_float(bits);
  const bool finite = bits < 0x7f800000, zero = !finite || largest < 0x1p-110f;
  const float inverse = zero ? 0 : __fdiv_rn(127.0f, largest);
  scale = !finite ? NAN : zero ? 0 : __fdiv_rn(largest, 127.0f);
  const auto byte = [&](float x) {
    return static_cast<uint32_t>(__float2int_rn(__fmul_rn(x, inverse))) & 255;
  };
  return byte(v.x) | byte(v.y) << 8 | byte(v.z) << 16 | byte(v.w) << 24;
}

// Bytes of a row of a weight.
template <int DTYPE>
__host__ __device__ inline int64_t stream_row_bytes(int64_t k) {
  return DTYPE == MOELA_BF16 ? 2 * k : DTYPE == MOELA_INT4 ? (k + 63) / 64 * 32 : k;
}

__host__ __device__ inline int64_t stream_groups(int64_t k) {
  return (k + STREAM_GROUP - 1) / STREAM_GROUP;
}

// Where four bytes with the scale of (row, group) lie.
template <int DTYPE>
__device__ __forceinline__ const char* stream_scale_at(const char* scales, int64_t row, int64_t g,
                                                       int64_t groups) {
  if constexpr (DTYPE == MOELA_FP8) return scales + (row / 128 * groups + g) * 4;
  if constexpr (DTYPE == MOELA_INT8) return scales + (row * groups + g) / 2 * 4;
  return scales + (row * groups + g) * 4;
}

// Where this block's share of n begins, or that of the block `after` places on: n times the number
// of blocks is below 2^32.
__device__ __forceinline__ int share(int n, int after = 0) {
  return static_cast<int>(static_cast<uint32_t>(n) * (blockIdx.x + after) / gridDim.x);
}

// Bytes of shared memory that a block may have.
inline size_t stream_shared_limit() {
  static const size_t limit = [] {
    int device = 0, bytes = 0;
    check(cudaGetDevice(&device), "asking for the device");
    check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          "asking for shared memory");
    return static_cast<size_t>(bytes);
  }();
  return limit;
}

}  // namespace moela::cuda
