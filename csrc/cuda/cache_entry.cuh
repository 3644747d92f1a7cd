// A token's entry in the cache, from f32 to the pool's type: see moela_pool_desc.
#pragma once

#include "cpu/cache_layout.h"
#include "cuda/rows.cuh"

namespace moela::cuda {

// The largest magnitude of x[begin, end) by one warp.
__device__ __forceinline__ float largest_of(const float* x, int begin, int end) {
  float largest = 0;
  for (int i = begin + static_cast<int>(threadIdx.x) % 32; i < end; i += 32) {
    largest = fmaxf(largest, fabsf(x[i]));
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, step));
  }
  return largest;
}

// x [r + dr], in shared memory, the latent and then the rotated key, to `to`, and the codes of its
// two scales, where the type has them, to `codes`. By threads [0, THREADS) of those that `sync`
// brings together, counted from any warp's first; `scales` [2] is shared memory.
template <int THREADS, class Sync>
__device__ __forceinline__ void put_cache_entry(int thread, int dtype, int r, int dr,
                                                const float* x, float* scales, char* to,
                                                uint8_t* codes, const Sync& sync) {
  const int width = r + dr;
  if (dtype == MOELA_F32) {
    for (int i = thread; i < width; i += THREADS) reinterpret_cast<float*>(to)[i] = x[i];
    return;
  }
  if (dtype == MOELA_BF16) {
    for (int i = thread; i < width; i += THREADS) {
      reinterpret_cast<uint16_t*>(to)[i] = bf16_bits(x[i]);
    }
    return;
  }
  const int most = cache_most(dtype);
  if (thread < 64) {
    const int part = thread / 32;
    const float largest = part == 0 ? largest_of(x, 0, r) : largest_of(x, r, width);
    if (thread % 32 == 0) {
      const uint8_t code = cache_code(largest, part == 0 ? most : CACHE_KEY_MOST);
      scales[part] = cache_scale(code);
      codes[part] = code;
    }
  }
  sync();
  uint8_t* out = reinterpret_cast<uint8_t*>(to);
  uint8_t* key = out + cache_key_at(dtype, r, dr);
  for (int i = thread; i < dr; i += THREADS) {
    key[i] = cache_int8(cache_steps(x[r + i], scales[1], CACHE_KEY_MOST));
  }
  if (dtype != MOELA_INT6) {
    for (int i = thread; i < r; i += THREADS) {
      const float steps = cache_steps(x[i], scales[0], most);
      out[i] = dtype == MOELA_INT8 ? cache_int8(steps) : cache_fp8(steps);
    }
    return;
  }
  const int short_at = int6_short_at(r, dr);
  for (int group = thread; group < int6_groups(r, dr); group += THREADS) {
    int6_put_group(out, group, short_at, x, scales[0]);
  }
}

}  // namespace moela::cuda
