// The entry that persistent.cu's row adds to the cache: what cache_write.cu does, with the same
// sums in the same order.
#pragma once

#include "cuda/cache_entry.cuh"
#include "cuda/mla_weight.cuh"
#include "cuda/persistent.cuh"

namespace moela::cuda::persistent {

#if __CUDA_ARCH__ >= 900
// The row's entry, see cache_write.cu, to s.entry: whoever attends to it makes it anew, which is
// sooner than to wait for another block's. By NORM_THREADS threads from ENTRY_THREAD on, while the
// others do something else.
template <int DTYPE>
__device__ __noinline__ void make_entry(int layer_index) {
  Shared<DTYPE>& s = shared_memory<DTYPE>();
  const Arguments& a = s.a;
  const PersistentLayer& layer = s.layers[layer_index % LAYERS];
  const int thread = threadIdx.x - ENTRY_THREAD;
  const uint32_t epoch = s.epoch + layer_index;
  const auto sync = [] { named_sync<2, NORM_THREADS>(); };
  float* x = s.unpacked;
  float* scales = x + WIDTH;  // [2]
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
  if (thread % 32 == 0) s.room[0][thread / 32] = sum;
  sync();
  const float factor = norm_factor(s.room[0], R, layer.latent_norm.epsilon);
  if (thread < R / 4) {
    const Tensor norm{const_cast<char*>(layer.latent_norm.weight), layer.latent_norm.dtype};
    const float4 w = {tensor_value(norm, 4 * thread), tensor_value(norm, 4 * thread + 1),
                      tensor_value(norm, 4 * thread + 2), tensor_value(norm, 4 * thread + 3)};
    *reinterpret_cast<float4*>(x + 4 * thread) = normed4(latent, factor, w);
  }
  sync();
  put_cache_entry<NORM_THREADS>(thread, s.pool.dtype, R, DR, x, scales, s.entry, s.entry_codes,
                                sync);
}

// The entry that make_entry() made, by all who multiply, after a sync().
template <int DTYPE>
__device__ __forceinline__ void put_entry(char* to, uint8_t* codes) {
  const Shared<DTYPE>& s = shared_memory<DTYPE>();
  const int thread = threadIdx.x;
  if (16 * thread < static_cast<int>(s.pool.row_bytes)) {
    reinterpret_cast<uint4*>(to)[thread] = reinterpret_cast<const uint4*>(s.entry)[thread];
  }
  if (s.pool.dtype != MOELA_BF16 && thread >= THREADS - 2) {
    codes[thread - (THREADS - 2)] = s.entry_codes[thread - (THREADS - 2)];
  }
}
static_assert(THREADS >= 2 * WIDTH / 16 + 2, "");
#endif  // __CUDA_ARCH__ >= 900

}  // namespace moela::cuda::persistent
