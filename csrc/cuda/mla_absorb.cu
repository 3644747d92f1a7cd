// Queries moved into the latent space: out [R, H, r + dr] = scale * [q_nope W_UK | q_pe] of
// q [R, H, dn + dr], rows of the absorbed path. W_UK [dn, r] of a head is read in place from
// kv_b_proj [H (dn + dv), r].
// DeepSeek-V2, arXiv 2405.04434, section 2.1.2: W^UK is absorbed into W^UQ.
//
// On tensor cores for dn = 128: a block holds 64 columns of one head's W_UK in registers, from
// before its input is ready, and takes tokens eight at a time. Each of four warps sums a quarter of
// dn; the four are added in order. W_UK is the transposed A operand: a lane reads eight columns of
// four rows of K and swaps them in registers. F32 weights and other dims: a thread a column, f32
// arithmetic.
#include "cuda/mla_weight.cuh"

namespace moela::cuda {

namespace {

struct Args {
  Step step;
  int32_t heads, dn, dr, dv, r;
  float scale;
  Tensor q, out;
  Weight w;
};

constexpr int THREADS = 128;
constexpr int COLUMNS = 64;  // of a block
constexpr int STEPS = 2;     // of 16 of dn, a warp
constexpr int DN = 64 * STEPS;

// scale * q_pe of tokens [token, n) every `step`th group of eight.
__device__ void copy_keys(const Args& a, int head, int group, int groups, int n) {
  for (int row = group * 8; row < n; row += groups * 8) {
    for (int i = threadIdx.x; i < 8 * a.dr; i += blockDim.x) {
      const int token = row + i / a.dr, column = i % a.dr;
      if (token >= n) break;
      const int64_t at = int64_t(token) * a.heads + head;
      tensor_store(a.out, at * (a.r + a.dr) + a.r + column,
                   a.scale * tensor_value(a.q, at * (a.dn + a.dr) + a.dn + column));
    }
  }
}

// Grid: (slices of 64 columns, then one of the keys; heads; groups of tokens).
template <int DTYPE>
__global__ void __launch_bounds__(THREADS) absorb(const __grid_constant__ Args a) {
  alignas(16) __shared__ float partial[2][4][8][COLUMNS + 4];
  const int head = blockIdx.y, slice = blockIdx.x;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const bool keys = slice == a.r / COLUMNS;
  uint32_t weights[STEPS][4][4];  // [step][tile of 16 columns][register of A]
  if (!keys) {
    const int64_t first = int64_t(head) * (a.dn + a.dv) + warp * (DN / 4) + 4 * t;
    absorb_fragments<DTYPE>(a.w, first, slice * COLUMNS + 8 * g, weights);
  }
  wait_for_previous();
  allow_next();
  const int n = a.step.counts->n_absorbed;
  if (keys) return copy_keys(a, head, blockIdx.z, gridDim.z, n);
  int buffer = 0;
  for (int row = blockIdx.z * 8; row < n; row += gridDim.z * 8, buffer ^= 1) {
    uint2 x[STEPS] = {};
    if (row + g < n) {
      const int64_t at = (int64_t(row + g) * a.heads + head) * (a.dn + a.dr) + warp * (DN / 4);
      tensor_fours(a.q, at + 4 * t, x, [](int i) { return 16 * i; });
    }
    float sums[4][4] = {};
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const uint32_t* w = weights[step][i];
        mma_bf16(sums[i], w[0], w[1], w[2], w[3], x[step].x, x[step].y);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int j = 0; j < 2; j++) {
        *reinterpret_cast<float4*>(&partial[buffer][warp][2 * t + i][8 * g + 4 * j]) = {
            sums[2 * j][i], sums[2 * j][2 + i], sums[2 * j + 1][i], sums[2 * j + 1][2 + i]};
      }
    }
    __syncthreads();
    const int token = threadIdx.x / 16, column = threadIdx.x % 16 * 4;
    if (row + token < n) {
      float4 sum = {0, 0, 0, 0};
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float4 v = *reinterpret_cast<float4*>(&partial[buffer][i][token][column]);
        sum.x += v.x;
        sum.y += v.y;
        sum.z += v.z;
        sum.w += v.w;
      }
      sum.x *= a.scale;
      sum.y *= a.scale;
      sum.z *= a.scale;
      sum.w *= a.scale;
      tensor_store_four(
          a.out, (int64_t(row + token) * a.heads + head) * (a.r + a.dr) + slice * COLUMNS + column,
          sum);
    }
  }
}

// Grid: (slices of 128 columns, then one of the keys; heads; groups of tokens).
__global__ void __launch_bounds__(THREADS) absorb_any(const __grid_constant__ Args a) {
  wait_for_previous();
  allow_next();
  const int head = blockIdx.y, n = a.step.counts->n_absorbed;
  if (blockIdx.x == gridDim.x - 1) return copy_keys(a, head, blockIdx.z, gridDim.z, n);
  const int column = blockIdx.x * THREADS + threadIdx.x;
  if (column >= a.r) return;
  const int64_t first = int64_t(head) * (a.dn + a.dv);
  for (int row = blockIdx.z * 8; row < n; row += gridDim.z * 8) {
    float sums[8] = {};
    for (int k = 0; k < a.dn; k++) {
      const float w = weight_value(a.w, first + k, column);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        if (row + i >= n) continue;
        float x = tensor_value(a.q, (int64_t(row + i) * a.heads + head) * (a.dn + a.dr) + k);
        if (a.w.dtype != MOELA_F32) x = bf16_value(bf16_pair(x, 0) & 0xffff);
        sums[i] = fmaf(x, w, sums[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
      if (row + i >= n) continue;
      tensor_store(a.out, (int64_t(row + i) * a.heads + head) * (a.r + a.dr) + column,
                   a.scale * sums[i]);
    }
  }
}

}  // namespace

void mla_absorb(const Launch& at, int64_t heads, int64_t dn, int64_t dr, int64_t dv, int64_t r,
                float scale, Tensor q, const Weight& kv_b, Tensor out) {
  if (at.absorbed < 1) return;
  const Args args = {at.step,    int32_t(heads), int32_t(dn), int32_t(dr), int32_t(dv),
                     int32_t(r), scale,          q,           out,         kv_b};
  const bool fast =
      kv_b.dtype != MOELA_F32 && dn == DN && dv % 8 == 0 && r % COLUMNS == 0 && dr % 4 == 0;
  const int slices = int((fast ? r / COLUMNS : (r + THREADS - 1) / THREADS) + 1);
  // Tokens share what a block reads of the weight, unless the grid would not fill the device.
  const int64_t groups = (at.absorbed + 7) / 8, room = 8 * at.sms / (slices * heads);
  const dim3 grid(slices, unsigned(heads), unsigned(groups < room ? groups : room > 1 ? room : 1));
  const auto kernel = !fast                      ? absorb_any
                      : kv_b.dtype == MOELA_BF16 ? absorb<MOELA_BF16>
                      : kv_b.dtype == MOELA_FP8  ? absorb<MOELA_FP8>
                                                 : absorb<MOELA_INT8>;
  launch(at, kernel, grid, dim3(THREADS), 0, args);
}

}  // namespace moela::cuda
