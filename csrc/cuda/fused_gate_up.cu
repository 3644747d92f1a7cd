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

struct Matrices {
  const char* gate;
  const char* up;
  const char* gate_scales;
  const char* up_scales;
  int64_t gate_part, up_part, gate_scale_part, up_scale_part;
  int32_t rows;
  int32_t units;
};

constexpr int DEPTH = 3;
// Groups whose sums are kept: as many as leave half of the shared memory to the next kernel.
template <int DTYPE>
constexpr int ROUND = DTYPE == MOELA_BF16 ? 176 : 96;
constexpr int ROUTE_THREADS = 32;  // a warp that chooses while the others are at the shared experts

struct Arguments {
  const Counts* counts;
  RowInput input;
  int32_t row_bytes;
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
  volatile int* routed;          // set once `chosen` is there
  int shared_first, shared_end;  // rows of the shared experts
  int shared_count;
  int units;

  __device__ int groups(int) const { return a.groups; }
  __device__ int base(int unit) const { return unit * a.groups; }
  __device__ int x_base(int) const { return 0; }
  __device__ int row_parity(int lane) const { return lane / 4 & 1; }  // shared_first is even
  // Where unit u of this block lies: the first of its rows, and its rank (-1: shared).
  __device__ __forceinline__ int first_row(int u, int& rank) const {
    if (u < shared_count) {
      rank = -1;
      return shared_first + u * UNIT;
    }
    const int unit = blockIdx.x + (u - shared_count) * gridDim.x;
    rank = unit / a.routed.units;
    return (unit - rank * a.routed.units) * UNIT;
  }
  __device__ __forceinline__ RowSource enter(int unit, int lane) const {
    int rank;
    const int row = first_row(unit, rank) + lane / 4;
    if (rank >= 0) {
      while (!*routed) spin();
      __threadfence_block();
      __syncwarp();
    }
    const Matrices& m = rank < 0 ? a.shared : a.routed;
    const int64_t expert = rank < 0 ? 0 : chosen[rank];
    const bool inside = row < (rank < 0 ? shared_end : m.rows);
    const int64_t offset = inside ? static_cast<int64_t>(row) * a.row_bytes : 0;
    RowSource source;
    source.row[0] = m.gate + expert * m.gate_part + offset;
    source.row[1] = m.up + expert * m.up_part + offset;
    source.inside[0] = source.inside[1] = inside;
    source.row_bytes = a.row_bytes;
    source.scales = nullptr;
    if (StreamType<DTYPE>::SCALED && inside && lane % 4 < 2) {
      source.scales = lane % 4 ? m.up_scales + expert * m.up_scale_part
                               : m.gate_scales + expert * m.gate_scale_part;
      source.scale_index = static_cast<int64_t>(DTYPE == MOELA_FP8 ? row / 128 : row) * a.groups;
    }
    return source;
  }
};

template <int DTYPE>
__global__ void __launch_bounds__(ROW_THREADS + ROUTE_THREADS, 1)
    decode_gate_up_kernel(const __grid_constant__ Arguments a) {
  MOELA_DYNAMIC_SHARED(char, shared);
  __shared__ float room[8];
  __shared__ int chosen[ROUTE_MOST_CHOSEN];
  __shared__ float weights[ROUTE_MOST_CHOSEN];
  __shared__ int routed;
  const int top_k = static_cast<int>(a.shape.top_k);
  if (threadIdx.x == 0) routed = 0;
  __syncthreads();
  if (threadIdx.x >= ROW_THREADS) {
    wait_for_previous();
    allow_next();
    if (top_k == 0) return;
    route_row(a.shape, a.logits, a.bias, chosen, weights);
    __threadfence_block();
    const int lane = threadIdx.x % 32;
    if (lane == 0) *static_cast<volatile int*>(&routed) = 1;
    if (blockIdx.x == 0 && lane < top_k && a.chosen && a.counts->n_rows > 0) {
      a.chosen[lane] = chosen[lane];
      a.weights[lane] = weights[lane];
    }
    return;
  }
  RowStream<DTYPE, DEPTH, ROUND<DTYPE>> stream(shared, a.groups);
  // Of the shared experts any even number of rows, so that all blocks read alike; an expert's are
  // dealt by the unit.
  const int shared_first = share((a.shared.rows + 1) / 2) * 2;
  const int shared_end = min(a.shared.rows, share((a.shared.rows + 1) / 2, 1) * 2);
  const int shared_count = (shared_end - shared_first + UNIT - 1) / UNIT;
  const int routed_all = top_k * a.routed.units;
  // Blocks take units in turn, so that together they read on through memory.
  const int routed_count =
      (routed_all - static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) - 1) /
      static_cast<int>(gridDim.x);
  const Provider<DTYPE> provider{
      a, chosen, &routed, shared_first, shared_end, shared_count, shared_count + routed_count};
  const RowNormWeights norm(a.input);
  int rows = 0;
  const auto middle = [&] {
    wait_for_previous();
    allow_next();
    rows = a.counts->n_rows;
    prepare_row(stream, a.input, norm, room);
    row_sync();
  };
  const int round = ROUND<DTYPE> / a.groups;
  stream.run(provider, shared_count, round, middle, [&](int unit, int unit_end) {
    const int count = (unit_end - unit) * UNIT;
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += ROW_THREADS) {
      const int at = i / UNIT * a.groups, r = i % UNIT;
      const float gate = stream.sum(at, a.groups, r);
      const float up = stream.sum(at, a.groups, r + UNIT);
      int rank;
      const int row = provider.first_row(unit + i / UNIT, rank) + r;
      if (rows < 1) continue;
      if (rank < 0) {
        if (row < shared_end) a.shared_out[row] = silu_mul(gate, up);
      } else if (row < a.routed.rows) {
        a.routed_out[static_cast<int64_t>(rank) * a.routed.rows + row] = silu_mul(gate, up);
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
  a.row_bytes = static_cast<int32_t>(stream_row_bytes<DTYPE>(a.input.k));
  const size_t shared = RowStream<DTYPE, DEPTH, ROUND<DTYPE>>::shared_bytes(a.groups);
  allow_shared(decode_gate_up_kernel<DTYPE>);
  const int64_t units = a.shared.units + a.shape.top_k * a.routed.units;
  const unsigned blocks = static_cast<unsigned>(units < at.sms ? units : at.sms);
  launch(at, decode_gate_up_kernel<DTYPE>, dim3(blocks), dim3(ROW_THREADS + ROUTE_THREADS), shared,
         a);
}

}  // namespace

bool decode_experts_fits(const Launch& at, const DecodeExperts& e) {
  if (at.bucket != 1) return false;
  const Weight& any = e.shared_gate.data ? e.shared_gate : e.gate;
  const int64_t d = any.cols;
  const int64_t top_k = e.gate.data ? e.shape.top_k : 0;
  const auto fits = [&](const Weight& gate, const Weight& up, const Weight& down) {
    if (!gate.data) return true;
    const int64_t step = any.dtype == MOELA_BF16 ? 8 : any.dtype == MOELA_INT4 ? 4 : 16;
    return gate.dtype == any.dtype && up.dtype == any.dtype && down.dtype == any.dtype &&
           gate.cols == d && up.cols == d && up.rows == gate.rows && down.cols == gate.rows &&
           down.rows == d && d % step == 0 && gate.rows % step == 0;
  };
  const int64_t groups = top_k * stream_groups(e.gate.data ? e.gate.rows : 0) +
                         stream_groups(e.shared_gate.data ? e.shared_gate.rows : 0);
  // The largest that either half wants, of any type.
  const size_t most = 160 * 1024;
  return any.data && any.dtype != MOELA_F32 && most <= stream_shared_limit() &&
         stream_groups(d) <= ROW_ROUND && groups <= ROW_ROUND && top_k <= ROUTE_MOST_CHOSEN &&
         e.shape.experts <= ROUTE_MOST && e.shape.n_group <= ROUTE_MOST_GROUPS &&
         (!e.bias || e.bias->dtype == MOELA_F32) && fits(e.gate, e.up, e.down) &&
         fits(e.shared_gate, e.shared_up, e.shared_down);
}

void decode_gate_up(const Launch& at, const DecodeInput& input, const DecodeExperts& e) {
  Arguments a{};
  a.counts = at.step.counts;
  a.shared = matrices(e.shared_gate, e.shared_up);
  a.routed = matrices(e.gate, e.up);
  a.shape = e.shape;
  if (!a.routed.gate) a.shape.top_k = 0;
  const Weight& any = a.shared.gate ? e.shared_gate : e.gate;
  a.input = row_input(input, any.cols);
  a.groups = static_cast<int32_t>(stream_groups(a.input.k));
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
