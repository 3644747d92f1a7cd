// CUDA's functions of one thread, and those of a warp and a block.
#pragma once

#include "fibers.h"

using std::isfinite;
using std::isinf;
using std::isnan;

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

// Bits.
template <class To, class From>
inline To emulated_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
inline float __int_as_float(int x) { return emulated_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
inline int __float_as_int(float x) { return emulated_bits<int>(x); }
inline long long __double_as_longlong(double x) { return emulated_bits<long long>(x); }
// Time flies, so that nobody waits for it.
inline long long clock64() {
  static thread_local long long now = 0;
  return now += 1 << 20;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) {
    const unsigned which = selector >> (4 * i) & 15;
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (which & 7))) & 255;
    if (which & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << (8 * i);
  }
  return result;
}

// Arithmetic. This is compiled without contraction.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return expf(x); }

// To integers: what does not fit becomes the nearest that does, NaN becomes 0 (of 64 bits: 2^63).
inline int __float2int_rn(float x) {
  if (isnan(x)) return 0;
  const double whole = std::nearbyint(static_cast<double>(x));
  return whole >= 2147483647.0 ? 2147483647 : whole <= -2147483648.0 ? INT32_MIN : int(whole);
}
inline unsigned long long __double2ull_rn(double x) {
  if (isnan(x)) return 1ull << 63;
  const double whole = std::nearbyint(x);
  return whole >= 0x1p64 ? ~0ull : whole <= 0 ? 0 : static_cast<unsigned long long>(whole);
}
inline unsigned long long __float2ull_rn(float x) { return __double2ull_rn(x); }
inline float __double2float_rd(double x) {
  const float nearest = static_cast<float>(x);
  return nearest > x ? std::nextafter(nearest, -INFINITY) : nearest;
}

// Memory.
template <class T>
inline T __ldg(const T* from) {
  return *from;
}
template <class T>
inline T __ldcg(const T* from) {
  return *from;
}
template <class T>
inline T __ldcs(const T* from) {
  return *from;
}
template <class T>
inline void __stcg(T* to, const T& value) {
  *to = value;
}
template <class T, class U>
inline T atomicAdd(T* at, U value) {
  const T old = *at;
  *at = old + static_cast<T>(value);
  return old;
}
template <class T, class U>
inline T atomicMax(T* at, U value) {
  const T old = *at;
  *at = max(old, static_cast<T>(value));
  return old;
}
template <class T, class U>
inline T atomicOr(T* at, U value) {
  const T old = *at;
  *at = old | static_cast<T>(value);
  return old;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

// A warp.
inline void emulated_full(unsigned mask) {
  if (mask != ~0u) emulated::fail("an instruction for the lanes %x of a warp alone", mask);
}
inline void emulated_nothing(int* const*) {}
inline void __syncwarp() {
  int none = 0;
  emulated::meet<int, emulated_nothing>(none);
}
template <class T>
struct EmulatedShuffle {
  T value, result;
  int from;
};
template <class T>
inline void emulated_exchange(EmulatedShuffle<T>* const* lanes) {
  for (int i = 0; i < 32; i++) lanes[i]->result = lanes[lanes[i]->from]->value;
}
template <class T>
inline T emulated_shuffle(unsigned mask, T value, int from) {
  emulated_full(mask);
  EmulatedShuffle<T> mine{value, value, from};
  emulated::meet<EmulatedShuffle<T>, emulated_exchange<T>>(mine);
  return mine.result;
}
inline int emulated_lane() { return emulated::self().lane; }
template <class T>
inline T __shfl_sync(unsigned mask, T value, int lane) {
  return emulated_shuffle(mask, value, lane & 31);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return emulated_shuffle(mask, value, emulated_lane() ^ (bits & 31));
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned distance) {
  const int from = emulated_lane() - static_cast<int>(distance);
  return emulated_shuffle(mask, value, from < 0 ? emulated_lane() : from);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned distance) {
  const int from = emulated_lane() + static_cast<int>(distance);
  return emulated_shuffle(mask, value, from > 31 ? emulated_lane() : from);
}
template <class T, class Join>
inline T emulated_reduce(unsigned mask, T value, Join join) {
  for (int step = 16; step > 0; step /= 2) value = join(value, __shfl_xor_sync(mask, value, step));
  return value;
}
template <class T>
inline T __reduce_add_sync(unsigned mask, T value) {
  return emulated_reduce(mask, value, [](T a, T b) { return a + b; });
}
template <class T>
inline T __reduce_max_sync(unsigned mask, T value) {
  return emulated_reduce(mask, value, [](T a, T b) { return a < b ? b : a; });
}
inline unsigned __ballot_sync(unsigned mask, bool vote) {
  return __reduce_add_sync(mask, vote ? 1u << emulated_lane() : 0u);
}
inline int __all_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) == ~0u; }

// A block.
inline void __syncthreads() { emulated::synchronise(0, 0, true); }
inline int __syncthreads_count(int vote) { return emulated::synchronise(0, 0, true, vote != 0); }
inline int __syncthreads_or(int vote) { return __syncthreads_count(vote) > 0; }
