// The first half of a feed-forward block for one row: norm, the router's choice, and
// silu(x G^T) * (x U^T) of the shared experts and of those chosen. See fused.h.
// DeepSeekMoE, arXiv 2401.06066, eq. 3 and 9 to 11; SwiGLU: arXiv 2002.05202.
//
// A step's 16 rows are 8 of gate and the same 8 of up, so that both sums of an element meet in one
// thread. Shared experts come first: their weights are on their way before the choice is known.
#include "cuda/fused.h"
#include "cuda/route_row.cuh"
#include "cuda/stream_row.cuh"

namespace moela::cuda {
namespace {

constexpr int UNIT = 8;
constexpr int MOST_CHOSEN = 32;

struct Matrices {
  const char* gate;
  const char* up;
  const char* gate_scales;
  const char* up_scales;
  int64_t gate_part, up_part, gate_scale_part, up_scale_part;
  int32_t rows;
  int32_t units;
};

struct Arguments {
  const Counts* counts;
  Tensor in;
  const char* norm;
  int32_t norm_dtype;
  float epsilon;
  int64_t k;
  int64_t row_bytes;
  int32_t groups;
  Matrices shared, routed;
  RouterShape shape;
  const float* logits;
  const float* bias;
  float* shared_out;
  float* routed_out;
  int32_t* chosen;
  float* weights;
};

template <int DTYPE>
struct Provider {
  const Arguments& a;
  const int* chosen;
  int shared_first, shared_count, routed_first;

  __device__ const void* any() const { return a.shared.gate ? a.shared.gate : a.routed.gate; }
  // Where unit u of this block lies: the first of its rows, and its rank (-1: shared).
  __device__ __forceinline__ int first_row(int u, int& rank) const {
    if (u < shared_count) {
      rank = -1;
      return (shared_first + u) * UNIT;
    }
    const int unit = routed_first + u - shared_count;
    rank = unit / a.routed.units;
    return (unit - rank * a.routed.units) * UNIT;
  }
  __device__ __forceinline__ RowStep locate(int step, int lane) const {
    RowStep at;
    const int u = step / a.groups;
    at.group = at.x_group = step - u * a.groups;
    at.bytes = a.row_bytes;
    at.scale = nullptr;
    int rank;
    const int row = first_row(u, rank) + lane / 4;
    const Matrices& m = rank < 0 ? a.shared : a.routed;
    const int expert = rank < 0 ? 0 : chosen[rank];
    const bool inside = row < m.rows;
    at.row[0] = inside ? m.gate + expert * m.gate_part + row * a.row_bytes : nullptr;
    at.row[1] = inside ? m.up + expert * m.up_part + row * a.row_bytes : nullptr;
    if (StreamType<DTYPE>::SCALED) {
      at.scale_index[0] = at.scale_index[1] = static_cast<int64_t>(row) * a.groups + at.group;
      if (inside && lane % 4 < 2) {
        const char* scales = lane % 4 ? m.up_scales + expert * m.up_scale_part
                                      : m.gate_scales + expert * m.gate_scale_part;
        at.scale = stream_scale_at<DTYPE>(scales, row, at.group, a.groups);
      }
    }
    return at;
  }
};

__device__ __forceinline__ int share(int n, int block, int blocks) {
  return static_cast<int>(static_cast<int64_t>(n) * block / blocks);
}

template <int DTYPE>
__global__ void __launch_bounds__(ROW_THREADS, 2)
    decode_gate_up_kernel(const __grid_constant__ Arguments a) {
  extern __shared__ char shared[];
  __shared__ float room[8];
  __shared__ RouteRoom route;
  __shared__ int chosen[MOST_CHOSEN];
  __shared__ float weights[MOST_CHOSEN];
  RowStream<DTYPE> stream(shared, a.groups);
  const int block = blockIdx.x, blocks = gridDim.x;
  const int top_k = static_cast<int>(a.shape.top_k);
  const int shared_first = share(a.shared.units, block, blocks);
  const int shared_count = share(a.shared.units, block + 1, blocks) - shared_first;
  // Blocks with more of the one have less of the other.
  const int routed_all = top_k * a.routed.units;
  const int routed_first = routed_all - share(routed_all, block + 1, blocks);
  const int routed_count = routed_all - share(routed_all, block, blocks) - routed_first;
  const Provider<DTYPE> provider{a, chosen, shared_first, shared_count, routed_first};
  stream.start(provider, shared_count * a.groups);
  wait_for_previous();
  allow_next();
  if (a.counts->n_rows < 1) return;

  if (a.norm) {
    const float* in = static_cast<const float*>(a.in.data);
    const float factor = row_norm_factor(in, a.k, a.epsilon, room);
    stream.prepare(0, a.k, [&](int64_t i) {
      return normed(in[i], factor, norm_weight(a.norm, a.norm_dtype, i));
    });
  } else {
    stream.prepare(0, a.k, [&](int64_t i) { return tensor_at(a.in, i); });
  }
  if (top_k > 0 && threadIdx.x >= ROW_THREADS - 32) {
    route_row(a.shape, a.logits, a.bias, route, chosen, weights);
    const int lane = threadIdx.x % 32;
    if (block == 0 && lane < top_k) {
      a.chosen[lane] = chosen[lane];
      a.weights[lane] = weights[lane];
    }
  }
  __syncthreads();

  const int units = max(1, ROW_ROUND / a.groups);
  stream.run(provider, (shared_count + routed_count) * a.groups, units * a.groups,
             [&](int begin, int end) {
               const int count = (end - begin) / a.groups * UNIT;
               for (int i = threadIdx.x; i < count; i += ROW_THREADS) {
                 const int at = i / UNIT * a.groups, r = i % UNIT;
                 const float gate = stream.sum(at, a.groups, r);
                 const float up = stream.sum(at, a.groups, r + UNIT);
                 int rank;
                 const int row = provider.first_row(begin / a.groups + i / UNIT, rank) + r;
                 if (rank < 0) {
                   if (row < a.shared.rows) a.shared_out[row] = silu_mul(gate, up);
                 } else if (row < a.routed.rows) {
                   a.routed_out[static_cast<int64_t>(rank) * a.routed.rows + row] =
                       silu_mul(gate, up);
                 }
               }
             });
}

Matrices matrices(const Weight& gate, const Weight& up) {
  Matrices m{};
  if (!gate.data) return m;
  m.gate = gate.data;
  m.up = up.data;
  m.gate_scales = gate.scales;
  m.up_scales = up.scales;
  m.gate_part = gate.part_bytes;
  m.up_part = up.part_bytes;
  m.gate_scale_part = gate.scale_part_bytes;
  m.up_scale_part = up.scale_part_bytes;
  m.rows = static_cast<int32_t>(gate.rows);
  m.units = (m.rows + UNIT - 1) / UNIT;
  return m;
}

template <int DTYPE>
void start(const Launch& at, Arguments& a) {
  a.row_bytes = stream_row_bytes<DTYPE>(a.k);
  const size_t shared = RowStream<DTYPE>::shared_bytes(a.groups);
  check(
      cudaFuncSetAttribute(decode_gate_up_kernel<DTYPE>,
                           cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
      "allowing shared memory");
  const int64_t units = a.shared.units + a.shape.top_k * a.routed.units;
  const unsigned blocks = static_cast<unsigned>(units < at.sms ? units : at.sms);
  launch(at, decode_gate_up_kernel<DTYPE>, dim3(blocks), dim3(ROW_THREADS), shared, a);
}

}  // namespace

bool decode_experts_fits(const Launch& at, const DecodeExperts& e) {
  if (at.bucket != 1) return false;
  const Weight& any = e.shared_gate.data ? e.shared_gate : e.gate;
  const int64_t d = any.cols;
  const int64_t top_k = e.gate.data ? e.shape.top_k : 0;
  const auto fits = [&](const Weight& gate, const Weight& up, const Weight& down) {
    if (!gate.data) return true;
    const int64_t step = any.dtype == MOELA_BF16 ? 8 : any.dtype == MOELA_INT4 ? 1 : 16;
    return gate.dtype == any.dtype && up.dtype == any.dtype && down.dtype == any.dtype &&
           gate.cols == d && up.cols == d && up.rows == gate.rows && down.cols == gate.rows &&
           down.rows == d && d % step == 0 && gate.rows % step == 0;
  };
  const int64_t groups = top_k * stream_groups(e.gate.data ? e.gate.rows : 0) +
                         stream_groups(e.shared_gate.data ? e.shared_gate.rows : 0);
  return any.data && any.dtype != MOELA_F32 && stream_groups(d) <= ROW_ROUND &&
         groups <= ROW_ROUND && top_k <= MOST_CHOSEN && e.shape.experts <= ROUTE_MOST &&
         e.shape.n_group <= 32 && (!e.bias || e.bias->dtype == MOELA_F32) &&
         fits(e.gate, e.up, e.down) && fits(e.shared_gate, e.shared_up, e.shared_down);
}

void decode_gate_up(const Launch& at, const DecodeInput& input, const DecodeExperts& e) {
  Arguments a{};
  a.counts = at.step.counts;
  a.in = input.in;
  if (input.norm) {
    a.norm = input.norm->data;
    a.norm_dtype = input.norm->dtype;
    a.epsilon = input.epsilon;
  }
  a.shared = matrices(e.shared_gate, e.shared_up);
  a.routed = matrices(e.gate, e.up);
  a.shape = e.shape;
  if (!a.routed.gate) a.shape.top_k = 0;
  const Weight& any = a.shared.gate ? e.shared_gate : e.gate;
  a.k = any.cols;
  a.groups = static_cast<int32_t>(stream_groups(a.k));
  a.logits = e.logits;
  a.bias = e.bias ? reinterpret_cast<const float*>(e.bias->data) : nullptr;
  a.shared_out = e.shared;
  a.routed_out = e.routed;
  a.chosen = e.chosen;
  a.weights = e.weights;
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
