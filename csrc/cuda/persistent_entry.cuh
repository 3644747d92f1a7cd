// The entry that persistent.cu's row adds to the cache: what cache_write.cu does, with the same
// sums in the same order.
#pragma once

#include "cpu/cache_layout.h"
#include "cuda/mla_weight.cuh"
#include "cuda/persistent.cuh"
#include "cuda/rows.cuh"

namespace moela::cuda::persistent {

#if __CUDA_ARCH__ >= 900
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

// The row's entry, see cache_write.cu, to its place in the cache or in a tile: whoever attends to
// it makes it anew, which is sooner than to wait for another block's.
template <int DTYPE>
__device__ __noinline__ void put_entry(int layer_index, char* to, uint8_t* codes) {
  Shared<DTYPE>& s = shared_memory<DTYPE>();
  const Arguments& a = s.a;
  const PersistentLayer& layer = s.layers[layer_index % LAYERS];
  const int thread = threadIdx.x;
  const uint32_t epoch = s.epoch + layer_index;
  float* x = &s.scores[0][0][0];  // [WIDTH]
  float* scales = x + WIDTH;      // [2]
  const int dtype = s.pool.dtype;
  float4 latent{0, 0, 0, 0};
  if (thread < R / 4) {
    latent = receive_four(a.to.kv_a + 4 * thread, epoch);
  } else if (thread < R / 4 + DR / 2) {
    const int i = thread - R / 4;
    float2 pair[1];
    receive(pair, epoch, [&](int) { return a.to.kv_a + R + 2 * i; });
    const float2 y = rotate_pair(pair[0].x, pair[0].y, s.rope[i], s.rope[DR / 2 + i]);
    x[R + 2 * i] = y.x;
    x[R + 2 * i + 1] = y.y;
  }
  const float sum = warp_sum(thread < R / 4 ? add_squares(0, latent) : 0);
  if (thread % 32 == 0 && thread < NORM_THREADS) s.room[0][thread / 32] = sum;
  sync();
  const float factor = norm_factor(s.room[0], R, layer.latent_norm.epsilon);
  if (thread < R / 4) {
    const Tensor norm{const_cast<char*>(layer.latent_norm.weight), layer.latent_norm.dtype};
    const float4 w = {tensor_value(norm, 4 * thread), tensor_value(norm, 4 * thread + 1),
                      tensor_value(norm, 4 * thread + 2), tensor_value(norm, 4 * thread + 3)};
    *reinterpret_cast<float4*>(x + 4 * thread) = normed4(latent, factor, w);
  }
  sync();
  if (dtype == MOELA_BF16) {
    if (thread < WIDTH / 2) {
      reinterpret_cast<uint32_t*>(to)[thread] =
          bf16_bits(x[2 * thread]) | static_cast<uint32_t>(bf16_bits(x[2 * thread + 1])) << 16;
    }
    return;
  }
  const int most = cache_most(dtype);
  if (thread < 64) {
    const int part = thread / 32;
    const float largest = part == 0 ? largest_of(x, 0, R) : largest_of(x, R, WIDTH);
    if (thread % 32 == 0) {
      const uint8_t code = cache_code(largest, part == 0 ? most : CACHE_KEY_MOST);
      scales[part] = cache_scale(code);
      codes[part] = code;
    }
  }
  sync();
  uint8_t* out = reinterpret_cast<uint8_t*>(to);
  uint8_t* key = out + cache_key_at(dtype, R, DR);
  if (thread < DR) key[thread] = cache_int8(cache_steps(x[R + thread], scales[1], CACHE_KEY_MOST));
  if (dtype != MOELA_INT6) {
    const float steps = cache_steps(x[thread], scales[0], most);
    out[thread] = dtype == MOELA_INT8 ? cache_int8(steps) : cache_fp8(steps);
    return;
  }
  const int short_at = int6_short_at(R, DR);
  for (int group = thread; group < int6_groups(R, DR); group += THREADS) {
    int6_put_group(out, group, short_at, x, scales[0]);
  }
}
#endif  // __CUDA_ARCH__ >= 900

}  // namespace moela::cuda::persistent
