// What csrc/cuda/wgmma_mma.cuh says, on the emulated GPU: a warp has its 16 of the product's rows.
#pragma once

#include "cuda/ptx.cuh"
#include "cuda/wgmma_operands.cuh"

namespace moela::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

inline void wgmma_begin() {}
void wgmma_commit();
void emulated_wgmma_wait(int pending);
template <int Pending>
inline void wgmma_wait() {
  emulated_wgmma_wait(Pending);
}
template <int N>
inline void registers_inc() {}
template <int N>
inline void registers_dec() {}

// A lane's part: d [n / 2] of n columns; a in registers, or where its descriptor says.
struct EmulatedWgmma {
  float* d;
  int n;
  bool adds, columns;  // b [16, n], not [n, 16]
  const uint32_t* registers;
  uint64_t a, b;
};
void emulated_wgmma(EmulatedWgmma& mine);

template <int N>
struct Wgmma {
  static void run(float (&d)[N / 2], uint64_t a, uint64_t b) {
    EmulatedWgmma mine{d, N, true, false, nullptr, a, b};
    emulated_wgmma(mine);
  }
};
inline void wgmma_first(float (&d)[64], uint64_t a, uint64_t b) {
  EmulatedWgmma mine{d, 128, false, false, nullptr, a, b};
  emulated_wgmma(mine);
}
inline void wgmma_columns(float (&d)[64], const uint32_t* a, uint64_t b) {
  EmulatedWgmma mine{d, 128, true, true, a, 0, b};
  emulated_wgmma(mine);
}
inline void wgmma_values(float (&d)[128], uint64_t a, uint64_t b) {
  EmulatedWgmma mine{d, 256, true, true, nullptr, a, b};
  emulated_wgmma(mine);
}

#endif

}  // namespace moela::cuda
