#if defined(__x86_64__)

#include "x86.h"

#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace moela {

bool x86_has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

#if defined(MOELA_EMULATE)

bool x86_has_avx512() { return x86_has_avx2(); }
bool x86_has_amx() { return x86_has_avx2(); }

#else

bool x86_has_avx512() {
  return x86_has_avx2() && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}

bool x86_has_amx() {
#if defined(__linux__)
  unsigned a, b, c, d;
  if (!x86_has_avx512() || !__builtin_cpu_supports("avx512bf16") ||
      !__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    return false;
  }
  constexpr unsigned BF16 = 1u << 22, TILE = 1u << 24, INT8 = 1u << 25;
  if ((d & (BF16 | TILE | INT8)) != (BF16 | TILE | INT8)) return false;
  // The tiles' registers are part of a thread's state only for processes that ask.
  constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
  return false;
#endif
}

#endif

}  // namespace moela

#endif
