// What the programs here share: weights of random content, on the device and as the host reads
// them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cuda/launch.h"
#include "cuda/ops.h"

namespace bench {

using namespace moela;
using namespace moela::cuda;

inline void ok(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  printf("FAILED: %s: %s\n", what, cudaGetErrorString(error));
  exit(1);
}
#define OK(call) bench::ok(call, #call)

inline const char* type_name(int dtype) {
  return dtype == MOELA_F32    ? "f32"
         : dtype == MOELA_BF16 ? "bf16"
         : dtype == MOELA_FP8  ? "fp8"
         : dtype == MOELA_INT8 ? "int8"
                               : "int4";
}
inline int64_t groups_of(int64_t k) { return (k + 127) / 128; }
inline int64_t row_bytes(int dtype, int64_t k) {
  return dtype == MOELA_F32    ? 4 * k
         : dtype == MOELA_BF16 ? 2 * k
         : dtype == MOELA_INT4 ? (k + 63) / 64 * 32
                               : k;
}
inline int64_t scale_bytes(int dtype, int64_t n, int64_t k) {
  return dtype == MOELA_FP8    ? (n + 127) / 128 * groups_of(k) * 4
         : dtype == MOELA_INT8 ? n * groups_of(k) * 2
         : dtype == MOELA_INT4 ? n * groups_of(k) * 4
                               : 0;
}
inline int64_t padded(int64_t bytes) { return (bytes + 255) / 256 * 256; }

__host__ __device__ inline uint32_t hash(uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdULL;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ULL;
  x ^= x >> 33;
  return static_cast<uint32_t>(x);
}

// Element i of a weight's data (F32, BF16: by element; FP8, INT8: by byte; INT4: by byte of two)
// and of its scales, as bits.
__host__ __device__ inline uint32_t data_bits(int dtype, uint64_t seed, uint64_t i) {
  const uint32_t h = hash(seed * 0x9e3779b97f4a7c15ULL + i);
  const float uniform = (static_cast<float>(h >> 8) / 8388608.0f - 1) * 0.035f;
  uint32_t bits;
  memcpy(&bits, &uniform, 4);
  switch (dtype) {
    case MOELA_F32:
      return bits;
    case MOELA_BF16:
      return bits >> 16;
    case MOELA_FP8:
      return (h & 127) == 127 ? 0 : h & 255;
    case MOELA_INT8:
      return (h & 255) == 128 ? 0 : h & 255;
    default:
      return h & 255;
  }
}
__host__ __device__ inline uint32_t scale_bits(int dtype, uint64_t seed, uint64_t i) {
  const uint32_t h = hash((seed + 77) * 0x9e3779b97f4a7c15ULL + i);
  const float unit = dtype == MOELA_FP8 ? 1.6e-4f : dtype == MOELA_INT8 ? 2.7e-4f : 4e-4f;
  const float scale = unit * (1 + static_cast<float>(h & 1023) / 1024.0f);
  uint32_t bits;
  memcpy(&bits, &scale, 4);
  if (dtype == MOELA_FP8) return bits;
  if (dtype == MOELA_INT8) return bits >> 16;
  return bits >> 16 | (h & 0xffff0000u);
}

__global__ void fill_data(int dtype, uint64_t seed, char* data, int64_t count) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const uint32_t bits = data_bits(dtype, seed, i);
    if (dtype == MOELA_F32)
      reinterpret_cast<uint32_t*>(data)[i] = bits;
    else if (dtype == MOELA_BF16)
      reinterpret_cast<uint16_t*>(data)[i] = bits;
    else
      reinterpret_cast<uint8_t*>(data)[i] = bits;
  }
}
__global__ void fill_scales(int dtype, uint64_t seed, char* data, int64_t count) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const uint32_t bits = scale_bits(dtype, seed, i);
    if (dtype == MOELA_INT8)
      reinterpret_cast<uint16_t*>(data)[i] = bits;
    else
      reinterpret_cast<uint32_t*>(data)[i] = bits;
  }
}
__global__ void fill_floats(uint64_t seed, float scale, float* data, int64_t count) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    data[i] = (hash(seed * 31337 + i) / 2147483648.0f - 1) * scale;
  }
}

// `count` parts of [n, k], part p with seed `seed` + p; a slack of 256 bytes behind each.
inline Weight make_weight(int dtype, int count, int64_t n, int64_t k, uint64_t seed) {
  Weight w{};
  w.dtype = dtype;
  w.count = count;
  w.rows = n;
  w.cols = k;
  w.part_bytes = padded(n * row_bytes(dtype, k));
  w.scale_part_bytes = padded(scale_bytes(dtype, n, k));
  char* data;
  OK(cudaMalloc(&data, count * (w.part_bytes + w.scale_part_bytes) + 512));
  w.data = data;
  w.scales = data + count * w.part_bytes;
  for (int p = 0; p < count; p++) {
    const int64_t elements = dtype == MOELA_F32    ? n * k
                             : dtype == MOELA_BF16 ? n * k
                                                   : n * row_bytes(dtype, k);
    fill_data<<<528, 256>>>(dtype, seed + p, data + p * w.part_bytes, elements);
    const int64_t scales = scale_bytes(dtype, n, k) / (dtype == MOELA_INT8 ? 2 : 4);
    if (scales) {
      fill_scales<<<132, 256>>>(dtype, seed + p,
                                const_cast<char*>(w.scales) + p * w.scale_part_bytes, scales);
    }
  }
  OK(cudaGetLastError());
  return w;
}
inline int64_t weight_bytes(const Weight& w) {
  return w.rows * row_bytes(w.dtype, w.cols) + scale_bytes(w.dtype, w.rows, w.cols);
}

inline float* make_floats(int64_t count, uint64_t seed, float scale = 1) {
  float* data;
  OK(cudaMalloc(&data, count * 4 + 256));
  fill_floats<<<132, 256>>>(seed, scale, data, count);
  OK(cudaGetLastError());
  return data;
}
template <class T>
std::vector<T> read(const T* device, int64_t count) {
  std::vector<T> out(count);
  OK(cudaDeviceSynchronize());
  OK(cudaMemcpy(out.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost));
  return out;
}

inline float as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t as_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}
inline float round_bf16(float x) {
  const uint32_t bits = as_bits(x);
  return as_float((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u);
}
inline double fp8_value(uint32_t b) {
  const int e = b >> 3 & 15, m = b & 7;
  const double v = e ? std::ldexp(8 + m, e - 10) : std::ldexp(m, -9);
  return b & 128 ? -v : v;
}

// Element (row, col) of a weight made with `seed`, without its scale: the integer q or q * factor.
inline double raw_value(int dtype, uint64_t seed, int64_t k, int64_t row, int64_t col) {
  const int64_t at = row * row_bytes(dtype, k);
  switch (dtype) {
    case MOELA_F32:
      return as_float(data_bits(dtype, seed, row * k + col));
    case MOELA_BF16:
      return as_float(data_bits(dtype, seed, row * k + col) << 16);
    case MOELA_FP8:
      return fp8_value(data_bits(dtype, seed, at + col));
    case MOELA_INT8:
      return static_cast<int8_t>(data_bits(dtype, seed, at + col));
    default: {
      const int64_t j = col % 64;
      const uint32_t byte = data_bits(dtype, seed, at + col / 64 * 32 + j % 32);
      const int q = static_cast<int>(j < 32 ? byte & 15 : byte >> 4) - 8;
      const uint32_t s = scale_bits(dtype, seed, row * groups_of(k) + col / 128);
      return q * static_cast<int>(s >> (16 + col % 128 / 32 * 4) & 15);
    }
  }
}
inline float group_scale(int dtype, uint64_t seed, int64_t k, int64_t row, int64_t g) {
  const int64_t G = groups_of(k);
  switch (dtype) {
    case MOELA_FP8:
      return as_float(scale_bits(dtype, seed, row / 128 * G + g));
    case MOELA_INT8:
      return as_float(scale_bits(dtype, seed, row * G + g) << 16);
    case MOELA_INT4:
      return as_float(scale_bits(dtype, seed, row * G + g) << 16);
    default:
      return 1;
  }
}

// One row's product with one row of a weight: `exact` for integer types is to the bit what the
// kernels give; for the others a double, with `size` the sum of magnitudes.
struct Reference {
  float exact;
  double value, size;
};
inline Reference reference(int dtype, uint64_t seed, int64_t k, int64_t row, const float* x) {
  Reference r{0, 0, 0};
  for (int64_t g = 0; g < groups_of(k); g++) {
    const int64_t begin = g * 128, end = begin + 128 < k ? begin + 128 : k;
    const float scale = group_scale(dtype, seed, k, row, g);
    if (dtype == MOELA_INT8 || dtype == MOELA_INT4) {
      float largest = 0;
      for (int64_t i = begin; i < end; i++) largest = std::fmax(largest, std::fabs(x[i]));
      const float inverse = largest > 0 ? 127.0f / largest : 0;
      int64_t sum = 0;
      for (int64_t i = begin; i < end; i++) {
        sum += static_cast<int64_t>(std::nearbyint(x[i] * inverse)) *
               static_cast<int64_t>(raw_value(dtype, seed, k, row, i));
      }
      volatile float factor = largest / 127.0f;
      factor = factor * scale;
      volatile float part = static_cast<float>(sum);
      part = part * factor;
      volatile float total = r.exact + part;
      r.exact = total;
      r.value = total;
      r.size += std::fabs(part);
    } else {
      for (int64_t i = begin; i < end; i++) {
        const double xi = dtype == MOELA_F32 ? x[i] : round_bf16(x[i]);
        const double part = xi * raw_value(dtype, seed, k, row, i) * scale;
        r.value += part;
        r.size += std::fabs(part);
      }
    }
  }
  return r;
}

}  // namespace bench
