// What the checks and times of mla_prefill share: device memory, random caches of every type.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "cuda/mla_prefill.cuh"

namespace mla_prefill_bench {

using namespace moela;
using namespace moela::cuda;

constexpr int LAYERS = 2, LAYER = 1;

inline void ok(cudaError_t error) {
  if (error == cudaSuccess) return;
  printf("FAILED: %s\n", cudaGetErrorString(error));
  exit(1);
}

inline int multiprocessors() {
  int n;
  ok(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, 0));
  return n;
}

template <class T>
struct Device {
  T* data = nullptr;
  size_t n = 0;
  explicit Device(size_t n) : n(n) { ok(cudaMalloc(&data, n * sizeof(T) + 256)); }
  explicit Device(const std::vector<T>& host) : Device(host.size()) { put(host); }
  Device(const Device&) = delete;
  ~Device() { cudaFree(data); }
  void put(const std::vector<T>& host) {
    ok(cudaMemcpy(data, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> get() const {
    std::vector<T> host(n);
    ok(cudaMemcpy(host.data(), data, n * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }
  void fill(int byte) { ok(cudaMemset(data, byte, n * sizeof(T))); }
};

inline std::mt19937_64 generator(1);
inline float normal() {
  static std::normal_distribution<float> distribution;
  return distribution(generator);
}
inline int below(int n) { return int(generator() % uint64_t(n)); }

inline uint16_t to_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
inline float from_bf16(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}
inline float from_fp8(uint8_t x) {
  const int exponent = x >> 3 & 15, mantissa = x & 7;
  const float y = exponent ? std::ldexp(8.f + mantissa, exponent - 10) : std::ldexp(mantissa, -9);
  return x & 128 ? -y : y;
}
inline float from_scale(int c) { return c == 0 ? 0 : (8 + c % 8) * std::ldexp(1.f, c / 8 - 27); }

// Pages of one type, random; what no sequence has written is 0xFF: NaN in every float type.
struct Pool {
  PagePool pool{};
  std::vector<char> memory;
  int next = 0;
  std::vector<int> order;

  Pool(int dtype, int pages, int r, int dr) {
    pool.dtype = dtype;
    pool.layers = LAYERS;
    pool.kv_lora_rank = r;
    pool.qk_rope_head_dim = dr;
    const int bits = dtype == MOELA_F32    ? 32
                     : dtype == MOELA_BF16 ? 16
                     : dtype == MOELA_INT6 ? 6
                                           : 8;
    pool.row_bytes = int64_t(r + dr) * bits / 8;
    pool.layer_bytes = 64 * pool.row_bytes + (bits <= 8 ? 128 : 0);
    pool.page_bytes = LAYERS * pool.layer_bytes;
    memory.assign(pages * pool.page_bytes, char(0xFF));
    order.resize(pages);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), generator);
  }

  // Writes a random row and returns its values.
  void write(int page, int token, float* values) {
    const int r = pool.kv_lora_rank, dr = pool.qk_rope_head_dim, width = r + dr;
    char* layer = memory.data() + page * pool.page_bytes + LAYER * pool.layer_bytes;
    char* row = layer + token * pool.row_bytes;
    uint8_t* scales = reinterpret_cast<uint8_t*>(layer + 64 * pool.row_bytes) + token * 2;
    float scale[2] = {1, 1};
    // Latents and keys of about unit deviation: an 8-bit code c is (8 + c % 8) * 2^(c / 8 - 27).
    const int exponent = pool.dtype == MOELA_FP8 ? 16 : pool.dtype == MOELA_INT8 ? 17 : 19;
    for (int i = 0; i < 2 && pool.dtype >= MOELA_FP8; i++) {
      scales[i] = uint8_t((i == 1 ? 17 : exponent) * 8 + below(8));
    }
    if (pool.dtype >= MOELA_FP8) scale[0] = from_scale(scales[0]), scale[1] = from_scale(scales[1]);
    for (int i = 0; i < width; i++) {
      const float s = scale[i >= r];
      if (pool.dtype == MOELA_F32) {
        memcpy(row + i * 4, &(values[i] = normal()), 4);
      } else if (pool.dtype == MOELA_BF16) {
        const uint16_t x = to_bf16(normal());
        memcpy(row + i * 2, &x, 2);
        values[i] = from_bf16(x);
      } else if (i >= r) {
        const int x = below(255) - 127;
        row[pool.row_bytes - dr + (i - r)] = char(x);
        values[i] = float(x) * s;
      } else if (pool.dtype == MOELA_FP8) {
        uint8_t x = uint8_t(below(256));
        if ((x & 127) == 127) x ^= 1;
        row[i] = char(x);
        values[i] = from_fp8(x) * s;
      } else if (pool.dtype == MOELA_INT8) {
        const int x = below(255) - 127;
        row[i] = char(x);
        values[i] = float(x) * s;
      } else {
        // Bit by bit: four bits of an element in a nibble, the rest above them.
        const int whole = r - 2 * dr, bits = i < whole ? 6 : 5;
        const int j = i < whole ? i % 16 : (i - whole) % 32, half = i < whole ? 8 : 16;
        const int x = i < whole ? below(63) - 31 : 2 * below(32) - 32;
        const int code = i < whole ? x + 32 : (x + 32) / 2;
        uint8_t* group = reinterpret_cast<uint8_t*>(row) +
                         (i < whole ? i / 16 * 12 : whole / 16 * 12 + (i - whole) / 32 * 20);
        const auto set = [](uint8_t& byte, int bit, int on) {
          byte = uint8_t((byte & ~(1 << bit)) | on << bit);
        };
        for (int bit = 0; bit < 4; bit++) {
          set(group[j % half], j / half * 4 + bit, code >> bit & 1);
        }
        for (int bit = 4; bit < bits; bit++) {
          set(group[half + j % 4], j / 4 * (bits - 4) + bit - 4, code >> bit & 1);
        }
        values[i] = float(x) * s;
      }
    }
  }
};

struct Sequence {
  int pool;
  std::vector<int> pages;
  std::vector<float> entries;  // [tokens, r + dr], decoded
  std::vector<float> q;        // [tokens, heads, dn + dr]
  int tokens;
};

struct Chunk {
  int sequence, position, rows;
};

}  // namespace mla_prefill_bench
