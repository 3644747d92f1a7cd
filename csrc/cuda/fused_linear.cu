// Products of one row with up to four weights, the row normed on the way: see fused.h.
// RMS norm: arXiv 1910.07467. The projections of DeepSeek-V2: arXiv 2405.04434, eq. 9 to 19.
#include "cuda/fused.h"
#include "cuda/stream_row.cuh"

namespace moela::cuda {
namespace {

constexpr int MOST = 4;

struct Arguments {
  const Counts* counts;
  int32_t rows;
  Tensor in;
  const char* norm;
  int32_t norm_dtype;
  float epsilon;
  int64_t k;
  int64_t row_bytes;
  int32_t groups;
  int32_t count;
  int32_t n;  // rows of all products
  // Product p has rows [begin[p], begin[p + 1]).
  int32_t begin[MOST + 1];
  const char* data[MOST];
  const char* scales[MOST];
  const float* residual[MOST];
  float* out[MOST];
};

template <int DTYPE>
struct Provider {
  const Arguments& a;
  int first, end;  // rows of this block

  __device__ const void* any() const { return a.data[0]; }
  __device__ __forceinline__ RowStep locate(int step, int lane) const {
    RowStep at;
    const int tile = step / a.groups;
    at.group = at.x_group = step - tile * a.groups;
    at.bytes = a.row_bytes;
    at.scale = nullptr;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = first + tile * STREAM_TILE + lane / 4 + 8 * half;
      int p = 0;
      while (p + 1 < a.count && row >= a.begin[p + 1]) p++;
      const int64_t local = row - a.begin[p];
      at.row[half] = row < end ? a.data[p] + local * a.row_bytes : nullptr;
      if (StreamType<DTYPE>::SCALED) {
        at.scale_index[half] = local * a.groups + at.group;
        if (lane % 4 == half && row < end) {
          at.scale = stream_scale_at<DTYPE>(a.scales[p], local, at.group, a.groups);
        }
      }
    }
    return at;
  }
};

template <int DTYPE>
__global__ void __launch_bounds__(ROW_THREADS, 2)
    decode_linear_kernel(const __grid_constant__ Arguments a) {
  extern __shared__ char shared[];
  __shared__ float room[8];
  RowStream<DTYPE> stream(shared, a.groups);
  const int first = static_cast<int>(static_cast<int64_t>(a.n) * blockIdx.x / gridDim.x);
  const int end = static_cast<int>(static_cast<int64_t>(a.n) * (blockIdx.x + 1) / gridDim.x);
  const Provider<DTYPE> provider{a, first, end};
  const int steps = (end - first + STREAM_TILE - 1) / STREAM_TILE * a.groups;
  stream.start(provider, steps);
  wait_for_previous();
  allow_next();
  const int rows = a.rows == MOELA_ROWS_LOGITS ? a.counts->n_logits : a.counts->n_rows;
  if (rows < 1) return;

  if (a.norm) {
    const float* in = static_cast<const float*>(a.in.data);
    const float factor = row_norm_factor(in, a.k, a.epsilon, room);
    stream.prepare(0, a.k, [&](int64_t i) {
      return normed(in[i], factor, norm_weight(a.norm, a.norm_dtype, i));
    });
  } else {
    stream.prepare(0, a.k, [&](int64_t i) { return tensor_at(a.in, i); });
  }
  __syncthreads();

  const int tiles = max(1, ROW_ROUND / a.groups);
  stream.run(provider, steps, tiles * a.groups, [&](int begin, int) {
    const int first_row = first + begin / a.groups * STREAM_TILE;
    const int count = min(tiles * STREAM_TILE, end - first_row);
    for (int i = threadIdx.x; i < count; i += ROW_THREADS) {
      float sum = stream.sum(i / STREAM_TILE * a.groups, a.groups, i % STREAM_TILE);
      const int row = first_row + i;
      int p = 0;
      while (p + 1 < a.count && row >= a.begin[p + 1]) p++;
      const int local = row - a.begin[p];
      if (a.residual[p]) sum = __fadd_rn(sum, a.residual[p][local]);
      a.out[p][local] = sum;
    }
  });
}

template <int DTYPE>
void start(const Launch& at, const Arguments& a) {
  const size_t shared = RowStream<DTYPE>::shared_bytes(a.groups);
  check(cudaFuncSetAttribute(decode_linear_kernel<DTYPE>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        "allowing shared memory");
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
  }
  const int64_t k = first.cols;
  if (stream_groups(k) > ROW_ROUND) return false;
  switch (first.dtype) {
    case MOELA_BF16: return k % 8 == 0;
    case MOELA_FP8: case MOELA_INT8: return k % 16 == 0;
    case MOELA_INT4: return true;
    default: return false;
  }
}

void decode_linear(const Launch& at, int32_t rows, const DecodeInput& input,
                   const DecodeLinear* products, int32_t count) {
  Arguments a{};
  a.counts = at.step.counts;
  a.rows = rows;
  a.in = input.in;
  if (input.norm) {
    a.norm = input.norm->data;
    a.norm_dtype = input.norm->dtype;
    a.epsilon = input.epsilon;
  }
  const Weight& first = products[0].weight;
  a.k = first.cols;
  a.groups = static_cast<int32_t>(stream_groups(a.k));
  a.count = count;
  for (int i = 0; i < count; i++) {
    a.begin[i] = a.n;
    a.n += static_cast<int32_t>(products[i].weight.rows);
    a.data[i] = products[i].weight.data;
    a.scales[i] = products[i].weight.scales;
    a.residual[i] = products[i].residual;
    a.out[i] = products[i].out;
  }
  for (int i = count; i <= MOST; i++) a.begin[i] = a.n;
  switch (first.dtype) {
    case MOELA_BF16: a.row_bytes = stream_row_bytes<MOELA_BF16>(a.k); return start<MOELA_BF16>(at, a);
    case MOELA_FP8: a.row_bytes = stream_row_bytes<MOELA_FP8>(a.k); return start<MOELA_FP8>(at, a);
    case MOELA_INT8: a.row_bytes = stream_row_bytes<MOELA_INT8>(a.k); return start<MOELA_INT8>(at, a);
    default: a.row_bytes = stream_row_bytes<MOELA_INT4>(a.k); return start<MOELA_INT4>(at, a);
  }
}

}  // namespace moela::cuda
