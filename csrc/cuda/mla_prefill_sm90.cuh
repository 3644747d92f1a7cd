// What mla_prefill's kernels use of Hopper beside barrier.cuh and wgmma_mma.cuh: copies of
// contiguous bytes, and the product whose second operand is stored by rows of k. PTX ISA 8.0, 9.7.
#pragma once

#include <cstdint>

#include "cuda/barrier.cuh"
#include "cuda/wgmma_mma.cuh"

namespace moela::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Barriers of `threads` threads by number.
__device__ __forceinline__ void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Bulk copies; sizes and addresses are multiples of 16.
__device__ __forceinline__ void bulk_load(uint32_t to, const void* from, int bytes,
                                          uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void bulk_store(void* to, uint32_t from, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void bulk_store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until the stores have read their shared memory.
__device__ __forceinline__ void bulk_store_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
// Until they are done.
__device__ __forceinline__ void bulk_store_wait() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

template <int N>
__device__ __forceinline__ void registers_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void registers_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// The second operand whose product runs along its rows (MN-major): tiles of 64 columns,
// `tile_bytes` apart, rows of 128 swizzled bytes; the next 16 rows are 2,048 bytes on.
__device__ __forceinline__ uint64_t matrix_columns(uint32_t address, uint32_t tile_bytes) {
  return uint64_t{(address & 0x3FFFF) >> 4} | uint64_t{tile_bytes >> 4} << 16 |
         uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

// Keeps the compiler from moving uses of registers across wgmma's asynchronous part.
template <int N>
__device__ __forceinline__ void pin(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// d [64, 128] = a [64, 16] b [128, 16]^T, as Wgmma<128> but for what d held.
__device__ __forceinline__ void wgmma_first(float (&d)[64], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" MOELA_S128
               "}, %64, %65, 0, 1, 1, 0, 0;\n"
               : MOELA_D128(d)
               : "l"(a), "l"(b));
}

// d [64, 128] += a [64, 16] b [16, 128], a in registers (as mma.m16n8k16 has it, a warp's 16 rows),
// b a matrix_columns().
__device__ __forceinline__ void wgmma_columns(float (&d)[64], const uint32_t* a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" MOELA_S128
               "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
               : MOELA_D128(d)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace moela::cuda
