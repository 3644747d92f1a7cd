// What csrc/cuda/ptx.cuh says, on the emulated GPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#define MOELA_DYNAMIC_SHARED(type, name) \
  type* name = reinterpret_cast<type*>(emulated::self().block->shared)
#define MOELA_ALIGNED_DYNAMIC_SHARED(alignment, type, name) MOELA_DYNAMIC_SHARED(type, name)

namespace moela::cuda {

inline void wait_for_previous() {}
inline void allow_next() {}
inline void name_cluster(cudaLaunchConfig_t& config, cudaLaunchAttribute& attribute, int blocks) {
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  config.numAttrs++;
}

inline uint32_t bf16_pair(float low, float high) {
  return __float2bfloat16_rn(low).bits | uint32_t{__float2bfloat16_rn(high).bits} << 16;
}
inline float bf16_half(uint32_t pair, int half) {
  return __uint_as_float(half ? pair & 0xffff0000u : pair << 16);
}
inline uint32_t fma_bf16_pair(uint32_t a, uint32_t b, uint32_t c) {
  const auto half = [&](int i) { return fmaf(bf16_half(a, i), bf16_half(b, i), bf16_half(c, i)); };
  return bf16_pair(half(0), half(1));
}
inline float power2(float x) {
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0 : y;
}

void mma_bf16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
              uint32_t b1);
void mma_s8(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
            uint32_t b1);

inline uint32_t shared_address(const void* pointer) { return emulated::address_of(pointer); }

void copy16(void* to, const void* from, int bytes);
void copy4(void* to, const void* from, int bytes);
void commit_copies();
void wait_copies_pending(int pending);
template <int PENDING>
inline void wait_copies() {
  wait_copies_pending(PENDING);
}

template <int ID, int THREADS>
inline void named_sync() {
  emulated::synchronise(ID, THREADS, true);
}
template <int THREADS>
inline void named_sync(int id) {
  emulated::synchronise(id, THREADS, true);
}
template <int THREADS>
inline void named_arrive(int id) {
  emulated::synchronise(id, THREADS, false);
}
inline void prefetch_line(const void*) {}
inline void store_relaxed(uint64_t* to, uint64_t word) { *to = word; }
inline void store_relaxed_pair(uint64_t* to, ulonglong2 words) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) emulated::fail("a pair of words off 16 bytes");
  to[0] = words.x;
  to[1] = words.y;
}
inline uint64_t load_relaxed(const uint64_t* from) {
  return *const_cast<const volatile uint64_t*>(from);
}
inline ulonglong2 load_relaxed_pair(const uint64_t* from) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) emulated::fail("a pair of words off 16 bytes");
  return {load_relaxed(from), load_relaxed(from + 1)};
}
inline void fence_device() {}
inline void spin() { emulated::give_way(); }

struct EmulatedMatrices {
  uint32_t* m;
  uint32_t address;
};
template <bool TRANSPOSED>
inline void emulated_load(EmulatedMatrices* const* lanes) {
  for (int i = 0; i < 4; i++) {
    const auto element = [&](int row, int column) -> uint32_t {
      const uint32_t at = lanes[8 * i + row]->address;
      return static_cast<const uint16_t*>(emulated::pointer_of(at))[column];
    };
    for (int lane = 0; lane < 32; lane++) {
      const int row = lane / 4, column = 2 * (lane % 4);
      lanes[lane]->m[i] = TRANSPOSED ? element(column, row) | element(column + 1, row) << 16
                                     : element(row, column) | element(row, column + 1) << 16;
    }
  }
}
inline void load_matrices(uint32_t (&m)[4], uint32_t address) {
  EmulatedMatrices mine{m, address};
  emulated::meet<EmulatedMatrices, emulated_load<false>>(mine);
}
inline void load_transposed(uint32_t (&m)[4], uint32_t address) {
  EmulatedMatrices mine{m, address};
  emulated::meet<EmulatedMatrices, emulated_load<true>>(mine);
}

inline void load16_in_place(uint32_t (&to)[4], const void* from) { memcpy(to, from, 16); }
inline void store_shared(uint32_t to, uint32_t word) {
  *static_cast<uint32_t*>(emulated::pointer_of(to)) = word;
}
inline void store_shared(uint32_t to, const uint4& words) {
  *static_cast<uint4*>(emulated::pointer_of(to)) = words;
}
template <int N>
inline void pin(float (&)[N]) {}

}  // namespace moela::cuda
