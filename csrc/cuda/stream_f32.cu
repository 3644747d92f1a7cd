// Products with F32 weights, for any number of rows: see stream_f32.cuh for the order of summation.
// A block has four rows of weights (with a gate: two of each), and eight slots at a time; of a
// single matrix (the router's) and many rows eight rows of weights and 16 slots. Thousands of rows
// have a kernel of their own.
#include <algorithm>

#include "cuda/stream_f32.cuh"
#include "cuda/stream_f32_rows.h"
#include "cuda/stream_row.cuh"
#include "cuda/stream_tiles.cuh"

namespace moela::cuda {
namespace {

constexpr int TOKENS = 8;
constexpr int ROWS = 4;  // of weights, a tile; with a gate: 2 of gate, 2 of up

template <bool PAIR>
__global__ void __launch_bounds__(NORM_THREADS)
    f32_kernel(const __grid_constant__ StreamArguments a) {
  constexpr int COLUMNS = PAIR ? ROWS / 2 : ROWS;
  MOELA_DYNAMIC_SHARED(int, before);
  __shared__ float sums[NORM_THREADS / 32][ROWS][TOKENS];
  const int thread = threadIdx.x;
  wait_for_previous();
  allow_next();
  count_tiles<TOKENS>(a, before);
  const int tiles = before[a.experts] * a.row_tiles;
  for (int at = blockIdx.x; at < tiles; at += gridDim.x) {
    const StreamTile tile = find_tile<TOKENS>(a, before, at);
    const int first = tile.row_tile * COLUMNS;
    const char* w[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const int which = PAIR ? r / COLUMNS : 0;
      const int row = min(first + r % COLUMNS, a.n - 1);
      const char* data = a.data[which] + tile.expert * a.part[which] + row * a.row_bytes;
      w[r] = data;
    }
    int in_rows[TOKENS];
    float sum[ROWS][TOKENS] = {};
#pragma unroll
    for (int i = 0; i < TOKENS; i++) {
      in_rows[i] = tile_in_row(a, tile, i);
    }
    for (int k = 4 * thread; k < a.k; k += 4 * NORM_THREADS) {
      float4 v[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; r++) v[r] = load4_of(w[r], MOELA_F32, 0, k, a.k);
#pragma unroll
      for (int i = 0; i < TOKENS; i++) {
        if (in_rows[i] < 0) continue;
        const float4 x = load4_of(a.in, a.in_dtype, in_rows[i], k, a.k);
#pragma unroll
        for (int r = 0; r < ROWS; r++) sum[r][i] = f32_step(sum[r][i], v[r], x);
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
      for (int i = 0; i < TOKENS; i++) {
        if (in_rows[i] < 0) continue;  // for the whole block
        const float total = warp_sum(sum[r][i]);
        if (thread % 32 == 0) sums[thread / 32][r][i] = total;
      }
    }
    __syncthreads();
    if (thread < COLUMNS * TOKENS) {
      const int column = thread / TOKENS, i = thread % TOKENS;
      const int slot = tile_slot(a, tile, i);
      const float value = f32_warps(&sums[0][column][i], ROWS * TOKENS);
      if (slot >= 0 && first + column < a.n) {
        const float up = PAIR ? f32_warps(&sums[0][ROWS / 2 + column][i], ROWS * TOKENS) : 0;
        stream_store(a, slot, first + column, PAIR ? silu_mul(value, up) : value);
      }
    }
    __syncthreads();
  }
}

// A single matrix and many rows.
constexpr int MANY_FEATURES = 8, MANY_TOKENS = 16;
constexpr int MANY_VALUES = MANY_FEATURES * MANY_TOKENS;

// The warp's sums of 2 HALF values, in the end value i in lane i: the butterfly's additions, of
// which every lane does its part.
template <int HALF, int N>
__device__ __forceinline__ float warp_sums(float (&v)[N]) {
  const bool upper = (threadIdx.x & HALF) != 0;
#pragma unroll
  for (int i = 0; i < HALF; i++) {
    const float given = upper ? v[i] : v[i + HALF];
    const float kept = upper ? v[i + HALF] : v[i];
    v[i] = kept + __shfl_xor_sync(0xffffffff, given, HALF);
  }
  if constexpr (HALF > 1) return warp_sums<HALF / 2>(v);
  return v[0];
}

// Blocks of 16 rows, `parts` of them for the same rows, each with its share of the features.
__global__ void __launch_bounds__(NORM_THREADS, 1)
    f32_many_kernel(const __grid_constant__ StreamArguments a, int parts) {
  __shared__ float sums[NORM_THREADS / 32][MANY_VALUES];
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  wait_for_previous();
  allow_next();
  const SlotRange range = slot_range(a, 0);
  const int first = range.begin + static_cast<int>(blockIdx.x) / parts * MANY_TOKENS;
  const int count = min(MANY_TOKENS, range.end - first);
  if (count <= 0) return;
  for (int f = static_cast<int>(blockIdx.x) % parts * MANY_FEATURES; f < a.n;
       f += parts * MANY_FEATURES) {
    float sum[MANY_VALUES / 32][32] = {};  // value: token * MANY_FEATURES + feature
    for (int k = 4 * thread; k < a.k; k += 4 * NORM_THREADS) {
      float4 w[MANY_FEATURES];
#pragma unroll
      for (int j = 0; j < MANY_FEATURES; j++) {
        w[j] = load4_of(a.data[0] + min(f + j, a.n - 1) * a.row_bytes, MOELA_F32, 0, k, a.k);
      }
#pragma unroll
      for (int i = 0; i < MANY_TOKENS; i++) {
        const float4 x = load4_of(a.in, a.in_dtype, first + min(i, count - 1), k, a.k);
#pragma unroll
        for (int j = 0; j < MANY_FEATURES; j++) {
          float& one = sum[i * MANY_FEATURES / 32][i * MANY_FEATURES % 32 + j];
          one = f32_step(one, w[j], x);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < MANY_VALUES / 32; i++) sums[warp][i * 32 + lane] = warp_sums<16>(sum[i]);
    __syncthreads();
    if (thread < MANY_VALUES) {
      const int i = thread / MANY_FEATURES, j = thread % MANY_FEATURES;
      const float value = f32_warps(&sums[0][thread], MANY_VALUES);
      if (i < count && f + j < a.n) stream_store(a, first + i, f + j, value);
    }
    __syncthreads();
  }
}

}  // namespace

void stream_product_f32(const Launch& at, const StreamProduct& p) {
  StreamArguments a = stream_arguments(at, p);
  a.row_bytes = 4 * p.k;
  const int columns = a.pair ? ROWS / 2 : ROWS;
  a.row_tiles = (a.n + columns - 1) / columns;
  const int64_t slots = static_cast<int64_t>(p.absorbed_only ? at.absorbed : at.bucket) * a.top_k;
  if (slots == 0) return;
  if (stream_product_f32_rows(at, a, slots)) return;
  if (!a.plan && !a.pair && slots >= 4 * MANY_TOKENS) {
    const int64_t row_tiles = (slots + MANY_TOKENS - 1) / MANY_TOKENS;
    const int64_t most = (a.n + MANY_FEATURES - 1) / MANY_FEATURES;
    const int64_t parts = std::clamp<int64_t>(at.sms / row_tiles, 1, most);
    return launch(at, f32_many_kernel, dim3(static_cast<unsigned>(row_tiles * parts)),
                  dim3(NORM_THREADS), 0, a, static_cast<int>(parts));
  }
  const int64_t tiles = a.plan ? slots : (slots + TOKENS - 1) / TOKENS;
  const int64_t blocks = std::min<int64_t>(tiles * a.row_tiles, 8LL * at.sms);
  const auto kernel = a.pair ? f32_kernel<true> : f32_kernel<false>;
  launch(at, kernel, dim3(static_cast<unsigned>(blocks)), dim3(NORM_THREADS),
         (a.experts + 1) * sizeof(int), a);
}

}  // namespace moela::cuda
