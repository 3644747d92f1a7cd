// The AVX-512 and AMX sets: those of AVX2, but for products of many rows and with packed ones.
#if defined(__x86_64__)

#include "avx512.h"

namespace moela {

const Kernels& avx512_kernels() {
  static const Kernels kernels = [] {
    Kernels set = avx2_kernels();
    set.id = MOELA_KERNELS_AVX512;
    set.gemm_nt = gemm_nt_avx512;
    set.gemm_nn = gemm_nn_avx512;
    set.gemm_nt_scaled = gemm_nt_scaled_avx512;
    set.packed_bytes = packed_bytes_avx512;
    set.pack = pack_avx512;
    set.gemm_packed = gemm_packed_avx512;
    return set;
  }();
  return kernels;
}

const Kernels& amx_kernels() {
  static const Kernels kernels = [] {
    Kernels set = avx512_kernels();
    set.id = MOELA_KERNELS_AMX;
    set.packed_bytes = packed_bytes_amx;
    set.pack = pack_amx;
    set.gemm_packed = gemm_packed_amx;
    set.attention = &attention_amx();
    return set;
  }();
  return kernels;
}

}  // namespace moela

#endif
