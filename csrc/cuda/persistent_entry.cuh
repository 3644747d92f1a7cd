// The entry that persistent.cu's row adds to the cache: what cache_write.cu does, with the same
// sums in the same order.
#pragma once

#include "cuda/cache_entry.cuh"
#include "cuda/mla_weight.cuh"
#include "cuda/persistent.cuh"

namespace moela::cuda::persistent {

#if __CUDA_ARCH__ >= 900
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
  put_cache_entry<THREADS>(s.pool.dtype, R, DR, x, scales, to, codes, sync);
}
#endif  // __CUDA_ARCH__ >= 900

}  // namespace moela::cuda::persistent
