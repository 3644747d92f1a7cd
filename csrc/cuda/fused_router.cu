// The router's logits for one row, normed on the way: see fused.h. An F32 router is summed as every
// F32 product: see stream_f32.cuh. A BF16 one is a product like others.
#include "cuda/fused.h"
#include "cuda/row_norm.cuh"
#include "cuda/stream_f32.cuh"

namespace moela::cuda {
namespace {

struct Arguments {
  const Counts* counts;
  const float* in;
  const char* norm;
  int32_t norm_dtype;
  float epsilon;
  int32_t k;
  int32_t experts;
  const float* router;
  float* logits;
};

// One warp an expert. AHEAD pieces of a lane are on their way before the input is there.
__global__ void __launch_bounds__(NORM_THREADS) decode_router_kernel(const Arguments a) {
  constexpr int AHEAD = 16;
  __shared__ float room[8];
  extern __shared__ float x[];
  const int lane = threadIdx.x % 32, expert = blockIdx.x * 8 + threadIdx.x / 32;
  const float* row = a.router + static_cast<int64_t>(min(expert, a.experts - 1)) * a.k;
  float4 w[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD; i++) {
    const int at = i * 128 + 4 * lane;
    w[i] = at < a.k ? __ldcs(reinterpret_cast<const float4*>(row + at)) : float4{0, 0, 0, 0};
  }
  wait_for_previous();
  allow_next();
  if (a.counts->n_rows < 1) return;
  const float factor = a.norm ? row_norm_factor(a.in, a.k, a.epsilon, room) : 1;
  for (int i = threadIdx.x; i < a.k; i += NORM_THREADS) {
    x[i] = a.norm ? normed(a.in[i], factor, norm_weight(a.norm, a.norm_dtype, i)) : a.in[i];
  }
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < AHEAD; i++) {
    const int at = i * 128 + 4 * lane;
    if (at < a.k) sum = f32_step(sum, w[i], *reinterpret_cast<const float4*>(x + at));
  }
  for (int at = AHEAD * 128 + 4 * lane; at < a.k; at += 128) {
    sum = f32_step(sum, *reinterpret_cast<const float4*>(row + at),
                   *reinterpret_cast<const float4*>(x + at));
  }
  sum = f32_sum(sum);
  if (lane == 0 && expert < a.experts) a.logits[expert] = sum;
}

}  // namespace

bool decode_router_fits(const Launch& at, const Weight& router) {
  if (router.dtype == MOELA_F32) {
    return at.bucket == 1 && router.cols % 4 == 0 && router.cols <= 8192;
  }
  const DecodeLinear product{router, nullptr, nullptr};
  return decode_linear_fits(at, &product, 1);
}

void decode_router(const Launch& at, const DecodeInput& input, const Weight& router,
                   float* logits) {
  if (router.dtype != MOELA_F32) {
    const DecodeLinear product{router, nullptr, logits};
    return decode_linear(at, MOELA_ROWS_ALL, input, &product, 1);
  }
  Arguments a{};
  a.counts = at.step.counts;
  a.in = static_cast<const float*>(input.in.data);
  if (input.norm) {
    a.norm = input.norm->data;
    a.norm_dtype = input.norm->dtype;
    a.epsilon = input.epsilon;
  }
  a.k = static_cast<int32_t>(router.cols);
  a.experts = static_cast<int32_t>(router.rows);
  a.router = reinterpret_cast<const float*>(router.data);
  a.logits = logits;
  launch(at, decode_router_kernel, dim3((a.experts + 7) / 8), dim3(NORM_THREADS),
         static_cast<size_t>(a.k) * sizeof(float), a);
}

}  // namespace moela::cuda
