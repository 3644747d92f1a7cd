// Inputs of products in INT8 and INT4, quantized by group of 128 columns: see quantize_group() of
// stream_types.cuh. A warp a group.
#include <algorithm>

#include "cuda/scratch.h"
#include "cuda/stream.h"
#include "cuda/stream_tiles.cuh"

namespace moela::cuda {
namespace {

constexpr int WARPS = 8;
constexpr int THREADS = 32 * WARPS;

struct Arguments {
  Step step;
  int32_t rows;
  bool absorbed_only;
  int32_t each;  // rows of the input a row of the step
  int32_t k, groups;
  const char* in;
  int32_t in_dtype;
  uint32_t* bytes;
  float* scales;
};

__global__ void __launch_bounds__(THREADS) quantize_kernel(const __grid_constant__ Arguments a) {
  wait_for_previous();
  allow_next();
  const int lane = threadIdx.x % 32;
  int end = a.step.end(a.rows);
  if (a.absorbed_only) end = min(end, a.step.counts->n_absorbed);
  const int64_t first = int64_t{a.step.begin(a.rows)} * a.each * a.groups;
  const int64_t last = int64_t{end} * a.each * a.groups;
  int64_t at = first + blockIdx.x * int64_t{WARPS} + threadIdx.x / 32;
  for (; at < last; at += int64_t{gridDim.x} * WARPS) {
    const int64_t row = at / a.groups;
    const int column = static_cast<int>(at - row * a.groups) * STREAM_GROUP + 4 * lane;
    float4 v{0, 0, 0, 0};
    if (column < a.k) v = load4_of(a.in, a.in_dtype, row, column, a.k);
    float scale;
    a.bytes[at * 32 + lane] = quantize_group(v, scale);
    if (lane == 0) a.scales[at] = scale;
  }
}

}  // namespace

QuantizedRows quantize_rows(const Launch& at, const StreamProduct& p) {
  Arguments a{};
  a.step = at.step;
  a.rows = p.rows;
  a.absorbed_only = p.absorbed_only;
  a.each = static_cast<int32_t>(p.plan ? p.top_k / p.in_slots : 1);
  a.k = static_cast<int32_t>(p.k);
  a.groups = static_cast<int32_t>(quantized_groups(p.k));
  a.in = static_cast<const char*>(p.in.data);
  a.in_dtype = p.in.dtype;
  const int64_t groups = int64_t{p.absorbed_only ? at.absorbed : at.bucket} * a.each * a.groups;
  if (groups * (STREAM_GROUP + 4) > at.scratch_bytes) {
    throw Error(MOELA_ERR_INTERNAL, "the scratch memory does not hold a product's quantized input");
  }
  a.bytes = reinterpret_cast<uint32_t*>(at.scratch);
  a.scales = reinterpret_cast<float*>(at.scratch + groups * STREAM_GROUP);
  const int64_t blocks = std::min<int64_t>((groups + WARPS - 1) / WARPS, int64_t{at.sms} * 8);
  launch(at, quantize_kernel, dim3(static_cast<unsigned>(blocks)), dim3(THREADS), 0, a);
  return {at.scratch, a.scales};
}

}  // namespace moela::cuda
