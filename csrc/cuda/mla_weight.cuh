// Reads of kv_b_proj [H (dn + dv), r] for mla_absorb and mla_expand: F32, BF16, FP8 or INT8, the
// types with scales as bf16 of value * scale.
#pragma once

#include "cuda/launch.h"
#include "cuda/stream_types.cuh"

namespace moela::cuda {

// Two values times a scale, rounded to bf16 once.
__device__ __forceinline__ uint32_t scaled_pair(float low, float high, float scale) {
  return bf16_pair(low * scale, high * scale);
}

// Eight columns of a row from a multiple of eight on, as bf16.
template <int DTYPE>
__device__ __forceinline__ uint4 weight_eight(const Weight& w, int64_t row, int col) {
  const int64_t at = row * w.cols + col;
  if constexpr (DTYPE == MOELA_BF16) {
    return __ldg(reinterpret_cast<const uint4*>(w.data + 2 * at));
  } else {
    const uint2 bytes = __ldg(reinterpret_cast<const uint2*>(w.data + at));
    const int64_t groups = (w.cols + 127) / 128;
    uint4 out;
    if constexpr (DTYPE == MOELA_FP8) {
      const float scale = reinterpret_cast<const float*>(w.scales)[row / 128 * groups + col / 128];
      bf16_of_fp8(bytes.x, out.x, out.y);
      bf16_of_fp8(bytes.y, out.z, out.w);
      uint32_t* word = &out.x;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        word[i] = scaled_pair(bf16_value(word[i] & 0xffff), __uint_as_float(word[i] & 0xffff0000u),
                              scale);
      }
    } else {
      const float scale =
          bf16_value(reinterpret_cast<const uint16_t*>(w.scales)[row * groups + col / 128]);
      const auto value = [&](uint32_t word, int i) {
        return static_cast<float>(static_cast<int8_t>(word >> (8 * i)));
      };
      out.x = scaled_pair(value(bytes.x, 0), value(bytes.x, 1), scale);
      out.y = scaled_pair(value(bytes.x, 2), value(bytes.x, 3), scale);
      out.z = scaled_pair(value(bytes.y, 0), value(bytes.y, 1), scale);
      out.w = scaled_pair(value(bytes.y, 2), value(bytes.y, 3), scale);
    }
    return out;
  }
}

// W_UK as the transposed operand A of `mma.sync`: a lane reads eight columns of four rows of K,
// from `first` on and every 16 further, and swaps them. weights[step of 16 of K][tile][register].
template <int DTYPE, int STEPS>
__device__ __forceinline__ void absorb_fragments(const Weight& w, int64_t first, int column,
                                                 uint32_t (&weights)[STEPS][4][4]) {
#pragma unroll
  for (int step = 0; step < STEPS; step++) {
    uint4 row[4];
#pragma unroll
    for (int i = 0; i < 4; i++) row[i] = weight_eight<DTYPE>(w, first + 16 * step + i, column);
    const uint32_t* r[4] = {&row[0].x, &row[1].x, &row[2].x, &row[3].x};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      weights[step][i][0] = __byte_perm(r[0][i], r[1][i], 0x5410);
      weights[step][i][1] = __byte_perm(r[0][i], r[1][i], 0x7632);
      weights[step][i][2] = __byte_perm(r[2][i], r[3][i], 0x5410);
      weights[step][i][3] = __byte_perm(r[2][i], r[3][i], 0x7632);
    }
  }
}

// One value as the products see it.
__device__ __forceinline__ float weight_value(const Weight& w, int64_t row, int col) {
  const int64_t at = row * w.cols + col, groups = (w.cols + 127) / 128;
  switch (w.dtype) {
    case MOELA_F32:
      return reinterpret_cast<const float*>(w.data)[at];
    case MOELA_BF16:
      return bf16_value(reinterpret_cast<const uint16_t*>(w.data)[at]);
    case MOELA_FP8: {
      uint32_t low, high;
      bf16_of_fp8(static_cast<uint8_t>(w.data[at]), low, high);
      const float scale = reinterpret_cast<const float*>(w.scales)[row / 128 * groups + col / 128];
      return bf16_value(scaled_pair(bf16_value(low & 0xffff), 0, scale) & 0xffff);
    }
    default: {
      const float scale =
          bf16_value(reinterpret_cast<const uint16_t*>(w.scales)[row * groups + col / 128]);
      return bf16_value(scaled_pair(static_cast<float>(static_cast<int8_t>(w.data[at])), 0, scale) &
                        0xffff);
    }
  }
}

// Elements of a value, F32 or BF16; fours from a multiple of four on.
__device__ __forceinline__ float tensor_value(const Tensor& x, int64_t at) {
  return x.dtype == MOELA_F32 ? static_cast<const float*>(x.data)[at]
                              : bf16_value(static_cast<const uint16_t*>(x.data)[at]);
}
// COUNT fours at x[at + offset(i)] as bf16 pairs, all of them on their way before the first is
// used.
template <int COUNT, class Offset>
__device__ __forceinline__ void tensor_fours(const Tensor& x, int64_t at, uint2 (&out)[COUNT],
                                             Offset offset) {
  if (x.dtype == MOELA_F32) {
    const float* from = static_cast<const float*>(x.data) + at;
    float4 v[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++) v[i] = *reinterpret_cast<const float4*>(from + offset(i));
#pragma unroll
    for (int i = 0; i < COUNT; i++) out[i] = {bf16_pair(v[i].x, v[i].y), bf16_pair(v[i].z, v[i].w)};
  } else {
    const uint16_t* from = static_cast<const uint16_t*>(x.data) + at;
#pragma unroll
    for (int i = 0; i < COUNT; i++) out[i] = *reinterpret_cast<const uint2*>(from + offset(i));
  }
}
__device__ __forceinline__ void tensor_store(const Tensor& x, int64_t at, float value) {
  if (x.dtype == MOELA_F32)
    static_cast<float*>(x.data)[at] = value;
  else
    static_cast<uint16_t*>(x.data)[at] = static_cast<uint16_t>(bf16_pair(value, 0));
}
__device__ __forceinline__ void tensor_store_four(const Tensor& x, int64_t at, float4 v) {
  if (x.dtype == MOELA_F32) {
    *reinterpret_cast<float4*>(static_cast<float*>(x.data) + at) = v;
  } else {
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(x.data) + at) = {bf16_pair(v.x, v.y),
                                                                      bf16_pair(v.z, v.w)};
  }
}

}  // namespace moela::cuda
