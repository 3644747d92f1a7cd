// What leaves a mixture-of-experts layer: out [R, d] = residual + (sum over rank of
// weights [R, k] * in [R, k, d], ascending, + shared [R, d]). `in` F32 or PROJECTED_BF16; `shared`
// and `residual` may be NULL, and each may be `out`. DeepSeekMoE, arXiv 2401.06066, eq. 9 to 11.
#include "cuda/rows.cuh"

namespace moela::cuda {
namespace {

constexpr int THREADS = 128;

template <class Vector>
__device__ __forceinline__ void each(Vector& sum, const Vector& x, float factor, bool first);
template <>
__device__ __forceinline__ void each(float& sum, const float& x, float factor, bool first) {
  sum = first ? __fmul_rn(factor, x) : __fadd_rn(sum, __fmul_rn(factor, x));
}
template <>
__device__ __forceinline__ void each(float4& sum, const float4& x, float factor, bool first) {
  each(sum.x, x.x, factor, first);
  each(sum.y, x.y, factor, first);
  each(sum.z, x.z, factor, first);
  each(sum.w, x.w, factor, first);
}
__device__ __forceinline__ float added(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float4 added(const float4& a, const float4& b) {
  return {__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w)};
}

__device__ __forceinline__ float from_bf16(const float* in, int64_t i) {
  return bf16_value(reinterpret_cast<const uint16_t*>(in)[i]);
}
__device__ __forceinline__ float4 from_bf16(const float4* in, int64_t i) {
  const uint2 pairs = reinterpret_cast<const uint2*>(in)[i];
  return {__uint_as_float(pairs.x << 16), __uint_as_float(pairs.x & 0xffff0000u),
          __uint_as_float(pairs.y << 16), __uint_as_float(pairs.y & 0xffff0000u)};
}

// d, a thread's column: in Vectors. `shared`, `residual` and `out` may be one.
template <class Vector, bool HALVES>
__global__ void __launch_bounds__(THREADS)
    combine_kernel(Step step, int rows, int64_t d, int top_k, const Vector* in,
                   const float* weights, const Vector* shared, const Vector* residual,
                   Vector* out) {
  wait_for_previous();
  allow_next();
  const int64_t row = step.begin(rows) + static_cast<int64_t>(blockIdx.x);
  const int64_t column = static_cast<int64_t>(blockIdx.y) * THREADS + threadIdx.x;
  if (row >= step.end(rows) || column >= d) return;
  const Vector* from = in + row * top_k * d;
  const bool half = HALVES && row >= step.counts->n_absorbed;
  const int64_t to = row * d + column;
  Vector sum{};
#pragma unroll 8
  for (int rank = 0; rank < top_k; rank++) {
    const Vector x = half ? from_bf16(from + rank * d, column) : from[rank * d + column];
    each(sum, x, weights[row * top_k + rank], rank == 0);
  }
  if (shared) sum = added(sum, shared[to]);
  if (residual) sum = added(sum, residual[to]);
  out[to] = sum;
}

}  // namespace

void combine(const Launch& at, int32_t rows, int64_t d, int64_t top_k, Tensor in,
             const float* weights, const float* shared, const float* residual, float* out) {
  const int32_t most = most_rows(at, rows);
  if (most == 0) return;
  const auto run = [&](auto kernel, int64_t columns, auto* vector) {
    using Vector = std::remove_pointer_t<decltype(vector)>;
    const dim3 grid(most, static_cast<unsigned>((columns + THREADS - 1) / THREADS));
    launch(at, kernel, grid, dim3(THREADS), 0, at.step, rows, columns, static_cast<int>(top_k),
           static_cast<const Vector*>(in.data), weights, reinterpret_cast<const Vector*>(shared),
           reinterpret_cast<const Vector*>(residual), vector);
  };
  const bool halves = in.dtype == PROJECTED_BF16;
  if (d % 4 == 0) {
    run(halves ? combine_kernel<float4, true> : combine_kernel<float4, false>, d / 4,
        reinterpret_cast<float4*>(out));
  } else {
    run(halves ? combine_kernel<float, true> : combine_kernel<float, false>, d, out);
  }
}

}  // namespace moela::cuda
