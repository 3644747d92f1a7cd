// The router's logits for one row, normed on the way: see fused.h. An F32 router is summed as every
// F32 product (stream_f32.cuh), a block an expert; a BF16 one is a product like others.
#include "cuda/fused.h"
#include "cuda/stream_f32.cuh"
#include "cuda/stream_row.cuh"

namespace moela::cuda {
namespace {

struct Arguments {
  const Counts* counts;
  RowInput input;
  const float* router;
  float* logits;
};

__global__ void __launch_bounds__(NORM_THREADS)
    decode_router_kernel(const __grid_constant__ Arguments a) {
  __shared__ float room[2][8];
  const int thread = threadIdx.x, k = a.input.k;
  const Tensor row{const_cast<float*>(a.router + static_cast<int64_t>(blockIdx.x) * k), MOELA_F32};
  const Tensor norm{const_cast<char*>(a.input.norm), a.input.norm_dtype};
  const RowNormWeights weights(a.input);
  float4 w[ROW_KEPT], x[ROW_KEPT];
#pragma unroll
  for (int i = 0; i < ROW_KEPT; i++) w[i] = load4(row, 4 * thread + 4 * NORM_THREADS * i, k);
  wait_for_previous();
  allow_next();
  const int rows = a.counts->n_rows;
#pragma unroll
  for (int i = 0; i < ROW_KEPT; i++) x[i] = load4(a.input.in, 4 * thread + 4 * NORM_THREADS * i, k);
  const float factor = row_factor(a.input, x, room[0]);
  const auto step = [&](float sum, const float4& router, float4 v, const float4& by) {
    if (a.input.norm) v = normed4(v, factor, by);
    return f32_step(sum, router, v);
  };
  float sum = 0;
#pragma unroll
  for (int i = 0; i < ROW_KEPT; i++) sum = step(sum, w[i], x[i], weights.kept[i]);
#pragma unroll 1
  for (int at = 4 * thread + 4 * NORM_THREADS * ROW_KEPT; at < k; at += 4 * NORM_THREADS) {
    sum = step(sum, load4(row, at, k), load4(a.input.in, at, k),
               a.input.norm ? load4(norm, at, k) : float4{});
  }
  sum = warp_sum(sum);
  if (thread % 32 == 0) room[1][thread / 32] = sum;
  row_sync();
  if (thread == 0 && rows > 0) a.logits[blockIdx.x] = f32_warps(room[1], 1);
}

}  // namespace

bool decode_router_fits(const Launch& at, const Weight& router) {
  if (router.dtype == MOELA_F32) return at.bucket == 1 && router.cols % 4 == 0;
  const DecodeLinear product{router, nullptr, nullptr};
  return decode_linear_fits(at, &product, 1);
}

void decode_router(const Launch& at, const DecodeInput& input, const Weight& router,
                   float* logits) {
  if (router.dtype != MOELA_F32) {
    const DecodeLinear product{router, nullptr, logits};
    return decode_linear(at, MOELA_ROWS_ALL, input, &product, 1);
  }
  const Arguments a{at.step.counts, row_input(input, router.cols),
                    reinterpret_cast<const float*>(router.data), logits};
  launch(at, decode_router_kernel, dim3(static_cast<unsigned>(router.rows)), dim3(NORM_THREADS), 0,
         a);
}

}  // namespace moela::cuda
