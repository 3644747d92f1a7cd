// Attention results out of the latent space: out [R, H, dv] = W_UV o of o_latent [R, H, r], rows of
// the absorbed path. W_UV [dv, r] of a head is read in place from kv_b_proj [H (dn + dv), r].
// DeepSeek-V2, arXiv 2405.04434, section 2.1.2: v = W^UV c, taken after the weighted sum over c.
//
// On tensor cores for r = 512: a block holds 16 rows (or 64, for many tokens) of one head's W_UV in
// registers, from before its input is ready, and takes tokens eight at a time. Each of four warps
// sums a quarter of r; the four are added in order. K is permuted alike in both operands so that a
// lane reads 16 bytes of a row. F32 weights and other dims: a warp a row, f32 arithmetic.
#include "cuda/mla_weight.cuh"

namespace moela::cuda {

namespace {

struct Args {
  Step step;
  int32_t heads, dn, dv, r;
  Tensor o, out;
  Weight w;
};

constexpr int THREADS = 128;
constexpr int STEPS = 4;  // of 32 of r, a warp
constexpr int R = 4 * 32 * STEPS;

// Grid: (slices of 16 TILES rows; heads; groups of tokens).
template <int DTYPE, int TILES>
__global__ void __launch_bounds__(THREADS) expand(const __grid_constant__ Args a) {
  constexpr int ROWS = 16 * TILES;
  alignas(16) __shared__ float partial[2][4][8][ROWS + 4];
  const int head = blockIdx.y;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  uint4 weights[TILES][STEPS][2];
  {
    const int64_t first = int64_t(head) * (a.dn + a.dv) + a.dn + blockIdx.x * ROWS + g;
#pragma unroll
    for (int i = 0; i < TILES; i++) {
#pragma unroll
      for (int step = 0; step < STEPS; step++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
          weights[i][step][j] =
              weight_eight<DTYPE>(a.w, first + 16 * i + 8 * j, warp * (R / 4) + 32 * step + 8 * t);
        }
      }
    }
  }
  wait_for_previous();
  allow_next();
  const int n = a.step.counts->n_absorbed;
  int buffer = 0;
  for (int row = blockIdx.z * 8; row < n; row += gridDim.z * 8, buffer ^= 1) {
    uint2 x[2 * STEPS] = {};
    if (row + g < n) {
      const int64_t at = (int64_t(row + g) * a.heads + head) * R + warp * (R / 4) + 8 * t;
      tensor_fours(a.o, at, x, [](int i) { return i / 2 * 32 + i % 2 * 4; });
    }
#pragma unroll
    for (int i = 0; i < TILES; i++) {
      float sums[4] = {};
#pragma unroll
      for (int step = 0; step < STEPS; step++) {
        const uint4 w = weights[i][step][0], w8 = weights[i][step][1];
        mma_bf16(sums, w.x, w8.x, w.y, w8.y, x[2 * step].x, x[2 * step].y);
        mma_bf16(sums, w.z, w8.z, w.w, w8.w, x[2 * step + 1].x, x[2 * step + 1].y);
      }
      float (*to)[ROWS + 4] = partial[buffer][warp];
      to[2 * t][16 * i + g] = sums[0];
      to[2 * t + 1][16 * i + g] = sums[1];
      to[2 * t][16 * i + g + 8] = sums[2];
      to[2 * t + 1][16 * i + g + 8] = sums[3];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < TILES; i++) {
      const int j = i * THREADS + threadIdx.x, token = j / ROWS, column = j % ROWS;
      if (row + token >= n) continue;
      float sum = 0;
#pragma unroll
      for (int k = 0; k < 4; k++) sum += partial[buffer][k][token][column];
      tensor_store(
          a.out, (int64_t(row + token) * a.heads + head) * a.dv + blockIdx.x * ROWS + column, sum);
    }
  }
}

// Grid: (slices of 4 rows; heads; groups of tokens).
__global__ void __launch_bounds__(THREADS) expand_any(const __grid_constant__ Args a) {
  wait_for_previous();
  allow_next();
  const int head = blockIdx.y, n = a.step.counts->n_absorbed;
  const int lane = threadIdx.x % 32, column = blockIdx.x * 4 + threadIdx.x / 32;
  if (column >= a.dv) return;
  const int64_t weight_row = int64_t(head) * (a.dn + a.dv) + a.dn + column;
  for (int row = blockIdx.z * 8; row < n; row += gridDim.z * 8) {
    float sums[8] = {};
    for (int k = lane; k < a.r; k += 32) {
      const float w = weight_value(a.w, weight_row, k);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        if (row + i >= n) continue;
        float x = tensor_value(a.o, (int64_t(row + i) * a.heads + head) * a.r + k);
        if (a.w.dtype != MOELA_F32) x = bf16_value(bf16_pair(x, 0) & 0xffff);
        sums[i] = fmaf(x, w, sums[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
      for (int j = 16; j > 0; j /= 2) sums[i] += __shfl_xor_sync(~0u, sums[i], j);
      if (lane == 0 && row + i < n) {
        tensor_store(a.out, (int64_t(row + i) * a.heads + head) * a.dv + column, sums[i]);
      }
    }
  }
}

template <int DTYPE>
auto kernel_of(int tiles) {
  return tiles == 1 ? expand<DTYPE, 1> : expand<DTYPE, 4>;
}

}  // namespace

void mla_expand(const Launch& at, int64_t heads, int64_t dn, int64_t /*dr*/, int64_t dv, int64_t r,
                Tensor o_latent, const Weight& kv_b, Tensor out) {
  if (at.absorbed < 1) return;
  const Args args = {at.step,    int32_t(heads), int32_t(dn), int32_t(dv),
                     int32_t(r), o_latent,       out,         kv_b};
  const bool fast = kv_b.dtype != MOELA_F32 && r == R && dv % 16 == 0;
  // More rows a block read the tokens fewer times.
  const int tiles = fast && at.absorbed > 16 && dv % 64 == 0 ? 4 : 1;
  const int slices = int(fast ? dv / (16 * tiles) : (dv + 3) / 4);
  const int64_t groups = (at.absorbed + 7) / 8, room = 8 * at.sms / (slices * heads);
  const dim3 grid(slices, unsigned(heads), unsigned(groups < room ? groups : room > 1 ? room : 1));
  const auto kernel = !fast                      ? expand_any
                      : kv_b.dtype == MOELA_BF16 ? kernel_of<MOELA_BF16>(tiles)
                      : kv_b.dtype == MOELA_FP8  ? kernel_of<MOELA_FP8>(tiles)
                                                 : kernel_of<MOELA_INT8>(tiles);
  launch(at, kernel, grid, dim3(THREADS), 0, args);
}

}  // namespace moela::cuda
