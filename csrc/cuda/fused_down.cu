// The second half of a feed-forward block for one row: down projections of the chosen experts and
// of the shared ones, their weighted sum and the residual. See fused.h; DeepSeekMoE,
// arXiv 2401.06066, eq. 3 and 9 to 11.
//
// A block has 16 rows of the output and sums them over all experts itself. The shared experts come
// first in the stream (their address is known from the start), last in the sum.
#include "cuda/fused.h"
#include "cuda/stream_row.cuh"

namespace moela::cuda {
namespace {

constexpr int MOST_CHOSEN = 32;

struct Arguments {
  const Counts* counts;
  int32_t d;
  int32_t top_k;
  int32_t groups, shared_groups;        // of one expert's intermediate, of the shared experts'
  int64_t row_bytes, shared_row_bytes;
  int64_t intermediate, shared_intermediate;
  const char* data;
  const char* scales;
  int64_t part, scale_part;
  const char* shared_data;
  const char* shared_scales;
  const float* routed_in;
  const float* shared_in;
  const int32_t* chosen;
  const float* weights;
  const float* residual;
  float* out;
};

template <int DTYPE>
struct Provider {
  const Arguments& a;
  const int* chosen;
  int first, end;

  __device__ const void* any() const { return a.shared_data ? a.shared_data : a.data; }
  __device__ __forceinline__ RowStep locate(int step, int lane) const {
    RowStep at;
    at.x_group = step;
    const char* data = a.shared_data;
    const char* scales = a.shared_scales;
    int groups = a.shared_groups;
    at.bytes = a.shared_row_bytes;
    at.group = step;
    if (step >= a.shared_groups) {
      const int rank = (step - a.shared_groups) / a.groups;
      groups = a.groups;
      at.group = step - a.shared_groups - rank * groups;
      at.bytes = a.row_bytes;
      const int expert = chosen[rank];
      data = a.data + expert * a.part;
      scales = a.scales + expert * a.scale_part;
    }
    at.scale = nullptr;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = first + lane / 4 + 8 * half;
      at.row[half] = row < end ? data + row * at.bytes : nullptr;
      if (StreamType<DTYPE>::SCALED) {
        at.scale_index[half] = static_cast<int64_t>(row) * groups + at.group;
        if (lane % 4 == half && row < end) {
          at.scale = stream_scale_at<DTYPE>(scales, row, at.group, groups);
        }
      }
    }
    return at;
  }
};

template <int DTYPE>
__global__ void __launch_bounds__(ROW_THREADS, 2)
    decode_down_kernel(const __grid_constant__ Arguments a) {
  extern __shared__ char shared[];
  __shared__ int chosen[MOST_CHOSEN];
  __shared__ float weights[MOST_CHOSEN];
  __shared__ float sums[MOST_CHOSEN + 1][STREAM_TILE];
  const int steps = a.shared_groups + a.top_k * a.groups;
  RowStream<DTYPE, true> stream(shared, steps);
  const int first = blockIdx.x * STREAM_TILE, end = min(first + STREAM_TILE, a.d);
  const Provider<DTYPE> provider{a, chosen, first, end};
  stream.start(provider, a.shared_groups);
  wait_for_previous();
  allow_next();
  if (a.counts->n_rows < 1) return;

  if (threadIdx.x < a.top_k) {
    chosen[threadIdx.x] = a.chosen[threadIdx.x];
    weights[threadIdx.x] = a.weights[threadIdx.x];
  }
  if (a.top_k > 0) {
    __syncthreads();
    stream.start(provider, steps);
  }
  stream.prepare(0, a.shared_intermediate, [&](int64_t i) { return a.shared_in[i]; });
  for (int rank = 0; rank < a.top_k; rank++) {
    const float* in = a.routed_in + rank * a.intermediate;
    stream.prepare(a.shared_groups + rank * a.groups, a.intermediate,
                   [&](int64_t i) { return in[i]; });
  }
  __syncthreads();

  stream.run(provider, steps, steps, [&](int, int) {
    const int sections = a.top_k + (a.shared_groups > 0);
    for (int i = threadIdx.x; i < sections * STREAM_TILE; i += ROW_THREADS) {
      const int section = i / STREAM_TILE, row = i % STREAM_TILE;
      const bool routed = section < a.top_k;
      sums[section][row] = stream.sum(routed ? a.shared_groups + section * a.groups : 0,
                                      routed ? a.groups : a.shared_groups, row);
    }
    __syncthreads();
    const int row = first + static_cast<int>(threadIdx.x);
    if (threadIdx.x < STREAM_TILE && row < end) {
      float sum = 0;
      for (int rank = 0; rank < a.top_k; rank++) {
        const float y = sums[rank][threadIdx.x];
        sum = rank == 0 ? __fmul_rn(weights[0], y) : fmaf(weights[rank], y, sum);
      }
      if (a.shared_groups > 0) {
        const float y = sums[a.top_k][threadIdx.x];
        sum = a.top_k > 0 ? __fadd_rn(sum, y) : y;
      }
      if (a.residual) sum = __fadd_rn(sum, a.residual[row]);
      a.out[row] = sum;
    }
  });
}

template <int DTYPE>
void start(const Launch& at, Arguments& a) {
  a.row_bytes = stream_row_bytes<DTYPE>(a.intermediate);
  a.shared_row_bytes = stream_row_bytes<DTYPE>(a.shared_intermediate);
  const size_t shared = RowStream<DTYPE, true>::shared_bytes(a.shared_groups + a.top_k * a.groups);
  check(
      cudaFuncSetAttribute(decode_down_kernel<DTYPE>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(shared)),
      "allowing shared memory");
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
    a.intermediate = e.down.cols;
    a.groups = static_cast<int32_t>(stream_groups(a.intermediate));
    a.data = e.down.data;
    a.scales = e.down.scales;
    a.part = e.down.part_bytes;
    a.scale_part = e.down.scale_part_bytes;
  }
  if (e.shared_down.data) {
    a.shared_intermediate = e.shared_down.cols;
    a.shared_groups = static_cast<int32_t>(stream_groups(a.shared_intermediate));
    a.shared_data = e.shared_down.data;
    a.shared_scales = e.shared_down.scales;
  }
  a.routed_in = e.routed;
  a.shared_in = e.shared;
  a.chosen = e.chosen;
  a.weights = e.weights;
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
