// The warpgroup instruction d [64, N] += a [64, 16] b [N, 16]^T of bf16 operands in shared memory,
// f32 sums: N a multiple of 16 up to 256. Operands lie in rows of 128 bytes (64 of k), swizzled:
// the 16-byte chunk c of row r is at chunk c ^ (r % 8). A thread holds, in d[4 j + 0 .. 3], rows
// lane / 4 (+ 8 for 2, 3) of its warp's 16 and columns 8 j + 2 (lane % 4) + {0, 1}.
// PTX ISA, Asynchronous Warpgroup Level Matrix Instructions.
#pragma once

#include <cstdint>

#include "cuda/wgmma_operands.cuh"

namespace moela::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// What each thread wrote to its accumulators comes before the instructions that follow.
__device__ __forceinline__ void wgmma_begin() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most `Pending` committed groups are unfinished.
template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

// How many registers the warpgroup's threads have from here on.
template <int N>
__device__ __forceinline__ void registers_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void registers_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N>
struct Wgmma;

#define MOELA_R8(d, i)                                                                        \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define MOELA_D16(d) MOELA_R8(d, 0)
#define MOELA_D32(d) MOELA_D16(d), MOELA_R8(d, 8)
#define MOELA_D48(d) MOELA_D32(d), MOELA_R8(d, 16)
#define MOELA_D64(d) MOELA_D48(d), MOELA_R8(d, 24)
#define MOELA_D80(d) MOELA_D64(d), MOELA_R8(d, 32)
#define MOELA_D96(d) MOELA_D80(d), MOELA_R8(d, 40)
#define MOELA_D112(d) MOELA_D96(d), MOELA_R8(d, 48)
#define MOELA_D128(d) MOELA_D112(d), MOELA_R8(d, 56)
#define MOELA_D144(d) MOELA_D128(d), MOELA_R8(d, 64)
#define MOELA_D160(d) MOELA_D144(d), MOELA_R8(d, 72)
#define MOELA_D176(d) MOELA_D160(d), MOELA_R8(d, 80)
#define MOELA_D192(d) MOELA_D176(d), MOELA_R8(d, 88)
#define MOELA_D208(d) MOELA_D192(d), MOELA_R8(d, 96)
#define MOELA_D224(d) MOELA_D208(d), MOELA_R8(d, 104)
#define MOELA_D240(d) MOELA_D224(d), MOELA_R8(d, 112)
#define MOELA_D256(d) MOELA_D240(d), MOELA_R8(d, 120)

#define MOELA_S16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define MOELA_S32 MOELA_S16 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define MOELA_S48 MOELA_S32 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define MOELA_S64 MOELA_S48 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define MOELA_S80 MOELA_S64 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define MOELA_S96 MOELA_S80 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define MOELA_S112 MOELA_S96 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define MOELA_S128 MOELA_S112 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define MOELA_S144 MOELA_S128 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define MOELA_S160 MOELA_S144 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define MOELA_S176 MOELA_S160 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define MOELA_S192 MOELA_S176 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define MOELA_S208 MOELA_S192 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define MOELA_S224 MOELA_S208 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define MOELA_S240 MOELA_S224 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define MOELA_S256 MOELA_S240 ", %120, %121, %122, %123, %124, %125, %126, %127"

// A, B: the numbers of the operands after N / 2 registers.
#define MOELA_WGMMA(N, A, B)                                                                \
  template <>                                                                               \
  struct Wgmma<N> {                                                                         \
    static __device__ __forceinline__ void run(float (&d)[N / 2], uint64_t a, uint64_t b) { \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" MOELA_S##N  \
                   "}, %" #A ", %" #B ", 1, 1, 1, 0, 0;"                                    \
                   : MOELA_D##N(d)                                                          \
                   : "l"(a), "l"(b));                                                       \
    }                                                                                       \
  };
MOELA_WGMMA(16, 8, 9)
MOELA_WGMMA(32, 16, 17)
MOELA_WGMMA(48, 24, 25)
MOELA_WGMMA(64, 32, 33)
MOELA_WGMMA(80, 40, 41)
MOELA_WGMMA(96, 48, 49)
MOELA_WGMMA(112, 56, 57)
MOELA_WGMMA(128, 64, 65)
MOELA_WGMMA(144, 72, 73)
MOELA_WGMMA(160, 80, 81)
MOELA_WGMMA(176, 88, 89)
MOELA_WGMMA(192, 96, 97)
MOELA_WGMMA(208, 104, 105)
MOELA_WGMMA(224, 112, 113)
MOELA_WGMMA(240, 120, 121)
MOELA_WGMMA(256, 128, 129)
#undef MOELA_WGMMA

// d [64, 128] = a [64, 16] b [128, 16]^T, as Wgmma<128> but for what d held.
__device__ __forceinline__ void wgmma_first(float (&d)[64], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" MOELA_S128
               "}, %64, %65, 0, 1, 1, 0, 0;\n"
               : MOELA_D128(d)
               : "l"(a), "l"(b));
}
// d [64, 128] += a [64, 16] b [16, 128], a in registers (as mma.m16n8k16 has it, a warp's 16 rows),
// b a columns_descriptor().
__device__ __forceinline__ void wgmma_columns(float (&d)[64], const uint32_t* a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" MOELA_S128
               "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
               : MOELA_D128(d)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
// d [64, 256] += a [64, 16] b [16, 256], b a columns_descriptor().
__device__ __forceinline__ void wgmma_values(float (&d)[128], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" MOELA_S256
               "}, %128, %129, 1, 1, 1, 0, 1;\n"
               : MOELA_D256(d)
               : "l"(a), "l"(b));
}

#endif

}  // namespace moela::cuda
