// How blocks of persistent.cu hand numbers to one another: each with the epoch it belongs to, in
// one eight-byte word, so that whoever needs a number reads until it is there. Neither the writer
// waits for its stores nor the reader for a barrier: what is left is the way to the second-level
// cache and back.
//
// An epoch is a layer of a launch. That a word is not overwritten before all have read it follows
// from the layers themselves: every block needs all blocks' results of a layer to begin the next.
#pragma once

#include "cuda/persistent.h"
#include "cuda/ptx.cuh"

namespace moela::cuda::persistent {

#ifdef __CUDACC__
__device__ __forceinline__ void send(uint64_t* to, float value, uint32_t epoch) {
  store_relaxed(to, uint64_t{epoch} << 32 | __float_as_uint(value));
}

// Two words that lie on 16 bytes.
__device__ __forceinline__ void send_pair(uint64_t* to, float x, float y, uint32_t epoch) {
  store_relaxed_pair(
      to, {uint64_t{epoch} << 32 | __float_as_uint(x), uint64_t{epoch} << 32 | __float_as_uint(y)});
}

// N words, word i at at(i); all of them are on their way at once.
template <int N, class At>
__device__ __forceinline__ void receive(float (&out)[N], uint32_t epoch, const At& at) {
  while (true) {
    uint64_t words[N];
#pragma unroll
    for (int i = 0; i < N; i++) words[i] = load_relaxed(at(i));
    bool all = true;
#pragma unroll
    for (int i = 0; i < N; i++) {
      all = all && static_cast<uint32_t>(words[i] >> 32) == epoch;
      out[i] = __uint_as_float(static_cast<uint32_t>(words[i]));
    }
    if (all) return;
    spin();
  }
}
// N pairs of words, each pair on 16 bytes.
template <int N, class At>
__device__ __forceinline__ void receive(float2 (&out)[N], uint32_t epoch, const At& at) {
  while (true) {
    ulonglong2 words[N];
#pragma unroll
    for (int i = 0; i < N; i++) words[i] = load_relaxed_pair(at(i));
    bool all = true;
#pragma unroll
    for (int i = 0; i < N; i++) {
      all = all && static_cast<uint32_t>(words[i].x >> 32) == epoch &&
            static_cast<uint32_t>(words[i].y >> 32) == epoch;
      out[i] = {__uint_as_float(static_cast<uint32_t>(words[i].x)),
                __uint_as_float(static_cast<uint32_t>(words[i].y))};
    }
    if (all) return;
    spin();
  }
}
// Four words in a row.
__device__ __forceinline__ float4 receive_four(const uint64_t* from, uint32_t epoch) {
  float2 out[2];
  receive(out, epoch, [&](int i) { return from + 2 * i; });
  return {out[0].x, out[0].y, out[1].x, out[1].y};
}
// So many cycles go by.
__device__ __forceinline__ void pause_for(int cycles) {
  const long long end = clock64() + cycles;
  while (clock64() < end) spin();
}
// A word that is known to be there.
__device__ __forceinline__ float received(const uint64_t* from) {
  return __uint_as_float(static_cast<uint32_t>(load_relaxed(from)));
}
#endif

}  // namespace moela::cuda::persistent
