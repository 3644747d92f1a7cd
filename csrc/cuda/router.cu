// The gate of DeepSeekMoE: from logits [R, E] the k experts of each row in descending order of
// choice, and their weights. A warp a row.
//   s = softmax(logits) or sigmoid(logits); selection = s + bias
//   groups (n_group runs of E / n_group experts; topk_group of them stay):
//     none; or max of the group, the others' scores become 0 (V2, group_limited_greedy);
//     or sum of the group's two largest, the others' selection becomes -inf (V3, noaux_tc)
//   chosen = top k of selection; weight = factor * s, first divided by their sum when normalised
// Ties go to the lowest index, and NaN counts as -inf. DeepSeek-V2, arXiv 2405.04434, eq. 20 to 22
// and section 2.2.2; DeepSeek-V3, arXiv 2412.19437, eq. 12 to 16.
#include "cuda/route_row.cuh"
#include "cuda/rows.cuh"

namespace moela::cuda {
namespace {

constexpr int WARPS = 4;

__global__ void __launch_bounds__(WARPS * 32)
    router_kernel(Step step, int rows, RouterShape shape, const float* logits, const float* bias,
                  int32_t* experts, float* weights) {
  wait_for_previous();
  allow_next();
  const int warp = threadIdx.x / 32;
  const int64_t row = step.begin(rows) + static_cast<int64_t>(blockIdx.x) * WARPS + warp;
  if (row >= step.end(rows)) return;
  route_row(shape, logits + row * shape.experts, bias, experts + row * shape.top_k,
            weights + row * shape.top_k);
}

}  // namespace

void router(const Launch& at, int32_t rows, const RouterShape& shape, const float* logits,
            const Weight* bias, int32_t* experts, float* weights) {
  const int32_t most = most_rows(at, rows);
  if (most == 0) return;
  if (shape.experts > ROUTE_MOST || shape.n_group > 32 || shape.top_k > 32) {
    throw Error(MOELA_ERR_ARGUMENT, "router: at most " + std::to_string(ROUTE_MOST) +
                                        " experts in 32 groups, 32 of them chosen, on CUDA");
  }
  if (bias && bias->dtype != MOELA_F32) {
    throw Error(MOELA_ERR_ARGUMENT, "router: the bias must be f32");
  }
  launch(at, router_kernel, dim3((most + WARPS - 1) / WARPS), dim3(WARPS * 32), 0, at.step, rows,
         shape, logits, bias ? reinterpret_cast<const float*>(bias->data) : nullptr, experts,
         weights);
}

}  // namespace moela::cuda
