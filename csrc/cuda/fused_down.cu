// The second half of a feed-forward block for one row: down projections of the chosen experts and
// of the shared ones, their weighted sum and the residual. See fused.h; DeepSeekMoE,
// arXiv 2401.06066, eq. 3 and 9 to 11.
//
// A block has 16 rows of the output and sums them over all experts itself. The shared experts come
// first in the stream (their address is known from the start), last in the sum.
#include "cuda/fused.h"
#include "cuda/route_row.cuh"
#include "cuda/stream_row.cuh"

namespace moela::cuda {
namespace {

// The prepared input is tens of kilobytes: less is left for the ring.
template <int DTYPE>
constexpr int DEPTH = DTYPE == MOELA_BF16 || DTYPE == MOELA_FP8 ? 2 : 3;

struct Arguments {
  const Counts* counts;
  int32_t d;
  int32_t top_k;
  int32_t groups, shared_groups;  // of one expert's intermediate, of the shared experts'
  int32_t row_bytes, shared_row_bytes;
  int32_t intermediate, shared_intermediate;
  const char* data;
  const char* scales;
  int64_t part, scale_part;
  const char* shared_data;
  const char* shared_scales;
  const float* routed_in;
  const float* shared_in;
  RouterShape shape;
  const float* logits;
  const float* bias;
  const float* residual;
  float* out;
};

// Units: the shared experts if there are any, then the chosen by rank.
template <int DTYPE>
struct Provider {
  const Arguments& a;
  const int* chosen;
  int first, end;
  int units, shared_units;

  __device__ int groups(int unit) const { return unit < shared_units ? a.shared_groups : a.groups; }
  __device__ int base(int unit) const {
    return unit < shared_units ? 0
                               : shared_units * a.shared_groups + (unit - shared_units) * a.groups;
  }
  __device__ int x_base(int base) const { return base; }
  __device__ int row_parity(int lane) const { return (first + lane / 4) & 1; }
  __device__ __forceinline__ RowSource enter(int unit, int lane) const {
    const bool shared = unit < shared_units;
    const int64_t expert = shared ? 0 : chosen[unit - shared_units];
    const char* data = shared ? a.shared_data : a.data + expert * a.part;
    const char* scales = shared ? a.shared_scales : a.scales + expert * a.scale_part;
    const int bytes = shared ? a.shared_row_bytes : a.row_bytes;
    RowSource source;
    source.scales = nullptr;
    source.row_bytes = bytes;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = first + lane / 4 + 8 * half;
      const bool inside = row < end;
      source.row[half] = data + (inside ? static_cast<int64_t>(row) * bytes : 0);
      source.inside[half] = inside;
      if (StreamType<DTYPE>::SCALED && lane % 4 == half && inside) {
        source.scales = scales;
        source.scale_index =
            static_cast<int64_t>(DTYPE == MOELA_FP8 ? row / 128 : row) * groups(unit);
      }
    }
    return source;
  }
};

template <int DTYPE>
__global__ void __launch_bounds__(ROW_THREADS, 2)
    decode_down_kernel(const __grid_constant__ Arguments a) {
  constexpr int AHEAD = 6;
  MOELA_DYNAMIC_SHARED(char, shared);
  __shared__ int chosen[ROUTE_MOST_CHOSEN];
  __shared__ float weights[ROUTE_MOST_CHOSEN];
  __shared__ float sums[ROUTE_MOST_CHOSEN + 1][STREAM_TILE];
  const int groups = a.shared_groups + a.top_k * a.groups;
  const int shared_units = a.shared_groups > 0;
  RowStream<DTYPE, DEPTH<DTYPE>> stream(shared, groups);
  const int first = blockIdx.x * STREAM_TILE, end = min(first + STREAM_TILE, a.d);
  const Provider<DTYPE> provider{a, chosen, first, end, shared_units + a.top_k, shared_units};
  // The router has ended: decode_gate_up let this kernel start when it had seen so. All blocks
  // choose anew, and have their weights on the way before the input is there.
  if (a.top_k > 0) {
    if (threadIdx.x < 32) route_row(a.shape, a.logits, a.bias, chosen, weights);
    row_sync();
  }
  const int row = first + static_cast<int>(threadIdx.x);
  const bool mine = threadIdx.x < STREAM_TILE && row < end;
  int rows = 0;
  float residual = 0;
  const auto middle = [&] {
    wait_for_previous();
    allow_next();
    rows = a.counts->n_rows;
    if (mine && a.residual) residual = a.residual[row];
    // All inputs as one list of groups, several of a warp on their way at a time.
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int rank = -1, local = warp, left = a.shared_groups;  // local of `left` groups of an input
    const auto settle = [&] {
      while (local >= left && rank < a.top_k) {
        local -= left;
        left = a.groups;
        rank++;
      }
    };
    settle();
#pragma unroll 1
    for (int begin = warp; begin < groups; begin += AHEAD * ROW_WARPS) {
      float4 v[AHEAD];
#pragma unroll
      for (int i = 0; i < AHEAD; i++) {
        const int k = rank < 0 ? a.shared_intermediate : a.intermediate;
        const float* in = rank < 0 ? a.shared_in : a.routed_in + rank * k;
        v[i] = load4({const_cast<float*>(in), MOELA_F32},
                     rank < a.top_k ? local * STREAM_GROUP + 4 * lane : k, k);
        local += ROW_WARPS;
        settle();
      }
#pragma unroll
      for (int i = 0; i < AHEAD; i++) {
        const int group = begin + i * ROW_WARPS;
        if (group < groups) stream.put(group, v[i]);
      }
    }
    row_sync();
  };
  stream.run(provider, provider.units, provider.units, middle, [&](int, int) {
    const int sections = a.top_k + shared_units;
#pragma unroll 1
    for (int i = threadIdx.x; i < sections * STREAM_TILE; i += ROW_THREADS) {
      const int section = i / STREAM_TILE, row = i % STREAM_TILE;
      const bool routed = section < a.top_k;
      sums[section][row] = stream.sum(routed ? a.shared_groups + section * a.groups : 0,
                                      routed ? a.groups : a.shared_groups, row);
    }
    row_sync();
    if (mine && rows > 0) {
      float sum = 0;
#pragma unroll 1
      for (int rank = 0; rank < a.top_k; rank++) {
        const float y = sums[rank][threadIdx.x];
        const float term = __fmul_rn(weights[rank], y);
        sum = rank == 0 ? term : __fadd_rn(sum, term);
      }
      if (shared_units) {
        const float y = sums[a.top_k][threadIdx.x];
        sum = a.top_k > 0 ? __fadd_rn(sum, y) : y;
      }
      if (a.residual) sum = __fadd_rn(sum, residual);
      a.out[row] = sum;
    }
  });
}

template <int DTYPE>
void start(const Launch& at, Arguments& a) {
  a.row_bytes = static_cast<int32_t>(stream_row_bytes<DTYPE>(a.intermediate));
  a.shared_row_bytes = static_cast<int32_t>(stream_row_bytes<DTYPE>(a.shared_intermediate));
  const size_t shared =
      RowStream<DTYPE, DEPTH<DTYPE>>::shared_bytes(a.shared_groups + a.top_k * a.groups);
  allow_shared(decode_down_kernel<DTYPE>);
  launch(at, decode_down_kernel<DTYPE>, dim3((a.d + STREAM_TILE - 1) / STREAM_TILE),
         dim3(ROW_THREADS), shared, a);
}

}  // namespace

void decode_down(const Launch& at, const DecodeExperts& e, const float* residual, float* out) {
  Arguments a{};
  a.counts = at.step.counts;
  const Weight& any = e.shared_down.data ? e.shared_down : e.down;
  a.d = static_cast<int32_t>(any.rows);
  if (e.down.data) {
    a.top_k = static_cast<int32_t>(e.shape.top_k);
    a.intermediate = static_cast<int32_t>(e.down.cols);
    a.groups = static_cast<int32_t>(stream_groups(a.intermediate));
    a.data = e.down.data;
    a.scales = e.down.scales;
    a.part = e.down.part_bytes;
    a.scale_part = e.down.scale_part_bytes;
  }
  if (e.shared_down.data) {
    a.shared_intermediate = static_cast<int32_t>(e.shared_down.cols);
    a.shared_groups = static_cast<int32_t>(stream_groups(a.shared_intermediate));
    a.shared_data = e.shared_down.data;
    a.shared_scales = e.shared_down.scales;
  }
  a.routed_in = e.routed;
  a.shared_in = e.shared;
  a.shape = e.shape;
  a.logits = e.logits;
  a.bias = e.bias ? reinterpret_cast<const float*>(e.bias->data) : nullptr;
  a.residual = residual;
  a.out = out;
  switch (any.dtype) {
    case MOELA_BF16:
      return start<MOELA_BF16>(at, a);
    case MOELA_FP8:
      return start<MOELA_FP8>(at, a);
    case MOELA_INT8:
      return start<MOELA_INT8>(at, a);
    default:
      return start<MOELA_INT4>(at, a);
  }
}

}  // namespace moela::cuda
