// Products of one row with up to four weights, the row normed on the way: see fused.h.
// RMS norm: arXiv 1910.07467. The projections of DeepSeek-V2: arXiv 2405.04434, eq. 9 to 19.
#include "cuda/fused.h"
#include "cuda/stream_row.cuh"

namespace moela::cuda {
namespace {

constexpr int MOST = 4;

constexpr int DEPTH = 3;

template <int DTYPE>
using Stream = RowStream<DTYPE, DEPTH>;

struct Arguments {
  const Counts* counts;
  int32_t rows;
  RowInput input;
  int32_t row_bytes;
  int32_t groups;
  int32_t n;  // rows of all products
  // Product p has rows [begin[p], begin[p + 1]); its data and outputs are given as if they began at
  // row 0.
  int32_t begin[MOST + 1];
  const char* data[MOST];
  const char* scales[MOST];
  const float* residual[MOST];
  float* out[MOST];

  __device__ __forceinline__ int product(int row) const {
    return (row >= begin[1]) + (row >= begin[2]) + (row >= begin[3]);
  }
};

template <int DTYPE>
struct Provider {
  const Arguments& a;
  int first, end;  // rows of this block
  int units;

  __device__ int groups(int) const { return a.groups; }
  __device__ int base(int unit) const { return unit * a.groups; }  // groups before it
  __device__ int x_base(int) const { return 0; }
  __device__ int row_parity(int lane) const {
    // Of the row within its product: an INT8 scale is half of four bytes.
    return (first + lane / 4) & 1;
  }
  __device__ __forceinline__ RowSource enter(int unit, int lane) const {
    RowSource source;
    source.scales = nullptr;
    source.row_bytes = a.row_bytes;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = first + unit * STREAM_TILE + lane / 4 + 8 * half;
      const bool inside = row < end;
      const int p = inside ? a.product(row) : 0;
      const int local = inside ? row - a.begin[p] : 0;
      source.row[half] = a.data[p] + static_cast<int64_t>(local) * a.row_bytes;
      source.inside[half] = inside;
      if (StreamType<DTYPE>::SCALED && lane % 4 == half && inside) {
        source.scales = a.scales[p];
        source.scale_index =
            static_cast<int64_t>(DTYPE == MOELA_FP8 ? local / 128 : local) * a.groups;
      }
    }
    return source;
  }
};

template <int DTYPE>
__global__ void __launch_bounds__(ROW_THREADS, 2)
    decode_linear_kernel(const __grid_constant__ Arguments a) {
  MOELA_DYNAMIC_SHARED(char, shared);
  __shared__ float room[8];
  Stream<DTYPE> stream(shared, a.groups);
  const int first = share(a.n), end = share(a.n, 1);
  const Provider<DTYPE> provider{a, first, end, (end - first + STREAM_TILE - 1) / STREAM_TILE};
  const RowNormWeights weights(a.input);
  const int mine = first + threadIdx.x;
  int rows = 0;
  float residual = 0;
  const auto middle = [&] {
    wait_for_previous();
    allow_next();
    rows = a.rows == MOELA_ROWS_LOGITS ? a.counts->n_logits : a.counts->n_rows;
    // What the first round's sums are added to, there before it is wanted.
    if (mine < end) {
      const int p = a.product(mine);
      if (a.residual[p]) residual = a.residual[p][mine - a.begin[p]];
    }
    prepare_row(stream, a.input, weights, room);
    row_sync();
  };
  stream.run(provider, provider.units, ROW_ROUND / a.groups, middle, [&](int unit, int unit_end) {
    const int first_row = first + unit * STREAM_TILE;
    const int count = min(unit_end * STREAM_TILE, end - first) - unit * STREAM_TILE;
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += ROW_THREADS) {
      float sum = stream.sum(i / STREAM_TILE * a.groups, a.groups, i % STREAM_TILE);
      const int row = first_row + i;
      const int p = a.product(row);
      const int local = row - a.begin[p];
      if (a.residual[p]) sum = __fadd_rn(sum, row == mine ? residual : a.residual[p][local]);
      if (rows > 0) a.out[p][local] = sum;
    }
  });
}

template <int DTYPE>
void start(const Launch& at, Arguments& a) {
  a.row_bytes = static_cast<int32_t>(stream_row_bytes<DTYPE>(a.input.k));
  const size_t shared = Stream<DTYPE>::shared_bytes(a.groups);
  allow_shared(decode_linear_kernel<DTYPE>);
  const int tiles = (a.n + 7) / 8;
  launch(at, decode_linear_kernel<DTYPE>, dim3(tiles < at.sms ? tiles : at.sms), dim3(ROW_THREADS),
         shared, a);
}

}  // namespace

bool decode_linear_fits(const Launch& at, const DecodeLinear* products, int32_t count) {
  if (at.bucket != 1 || count < 1 || count > MOST) return false;
  const Weight& first = products[0].weight;
  for (int i = 0; i < count; i++) {
    const Weight& weight = products[i].weight;
    if (weight.dtype != first.dtype || weight.cols != first.cols) return false;
    // Which half of its four bytes an INT8 scale is must not differ between products.
    const bool odd = stream_groups(first.cols) % 2 && weight.rows % 2;
    if (weight.dtype == MOELA_INT8 && odd && i + 1 < count) return false;
  }
  const int64_t k = first.cols;
  if (first.rows > 4000000 || stream_groups(k) > ROW_ROUND || k % 4 != 0) return false;
  const auto room = [&](auto stream) {
    return decltype(stream)::shared_bytes(stream_groups(k)) <= stream_shared_limit();
  };
  switch (first.dtype) {
    case MOELA_BF16:
      return k % 8 == 0 && room(Stream<MOELA_BF16>{});
    case MOELA_FP8:
      return k % 16 == 0 && room(Stream<MOELA_FP8>{});
    case MOELA_INT8:
      return k % 16 == 0 && room(Stream<MOELA_INT8>{});
    case MOELA_INT4:
      return room(Stream<MOELA_INT4>{});
    default:
      return false;
  }
}

void decode_linear(const Launch& at, int32_t rows, const DecodeInput& input,
                   const DecodeLinear* products, int32_t count) {
  Arguments a{};
  a.counts = at.step.counts;
  a.rows = rows;
  a.input = row_input(input, products[0].weight.cols);
  a.groups = static_cast<int32_t>(stream_groups(a.input.k));
  for (int i = 0; i < count; i++) {
    a.begin[i] = a.n;
    a.n += static_cast<int32_t>(products[i].weight.rows);
    a.data[i] = products[i].weight.data;
    a.scales[i] = products[i].weight.scales;
    a.residual[i] = products[i].residual;
    a.out[i] = products[i].out;
  }
  for (int i = count; i <= MOST; i++) a.begin[i] = a.n;
  switch (products[0].weight.dtype) {
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
