// A product with one F32 matrix, the router's above all, for thousands of rows: the sums of
// stream_f32.cuh in the same order, though no thread has the elements that it names. A thread makes
// whole sums, of some rows and columns. The reference adds elements 4 l + 128 w + 1024 j for each l
// (a lane) of w (a warp), then the lanes in a butterfly, which is a tree with lanes l and l ^ 16 as
// neighbours, then the warps in order: here w goes on outside, and the tree's leaves come one after
// another.
//
// A stage is half the lanes of one w, of all rows of the tile: copied while those before are
// summed.
#include <algorithm>

#include "cuda/ptx.cuh"
#include "cuda/stream_f32.cuh"
#include "cuda/stream_f32_rows.h"
#include "cuda/stream_types.cuh"

namespace moela::cuda {
namespace {

constexpr int THREADS = 256;
constexpr int COLUMNS = 64;                   // of the output, a tile
constexpr int STEP = 4 * NORM_THREADS;        // of K, from one j to the next
constexpr int WARP_COLUMNS = STEP / 8;        // of K, of one w and j
constexpr int STAGES = 16;                    // of all K
constexpr int STAGE_COLUMNS = STEP / STAGES;  // of K, of one j
constexpr int MOST_DEPTH = 4;
constexpr int OWN = 4, ROWS = 8 * OWN;
// With fewer, tiles of 32 rows would leave most multiprocessors idle.
constexpr int64_t LEAST_ROWS = 1536;

// Floats of a row in a stage; four more, so that rows side by side lie in different banks.
__host__ __device__ inline int stage_row(int steps) { return steps * STAGE_COLUMNS + 4; }

// OWN x 2 sums a thread, of ROWS rows a tile. STEPS of K, or 0: as many as there are.
template <int STEPS>
__global__ void __launch_bounds__(THREADS)
    f32_rows_kernel(const __grid_constant__ StreamArguments a, int depth) {
  MOELA_ALIGNED_DYNAMIC_SHARED(16, float, ring);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int steps = STEPS ? STEPS : (a.k + STEP - 1) / STEP;
  const int stride = stage_row(steps), stage_floats = (ROWS + COLUMNS) * stride;
  wait_for_previous();
  allow_next();
  const SlotRange range = slot_range(a, 0);
  const int first = range.begin + static_cast<int>(blockIdx.x) * ROWS;
  const int count = min(ROWS, range.end - first), column0 = blockIdx.y * COLUMNS;
  if (count <= 0) return;

  // Lanes with bit 1 of `half`: of every four, two side by side, so that 32 bytes are copied whole.
  const auto copy = [&](int stage) {
    const int w = stage / 2, half = stage % 2, pieces = steps * STAGE_COLUMNS / 4;
    float* to = ring + stage % depth * stage_floats;
    for (int i = thread; i < (ROWS + COLUMNS) * pieces; i += THREADS) {
      const int row = i / pieces, piece = i % pieces;
      const int j = piece / 16, l = piece % 16 / 2 * 4 + half * 2 + piece % 2;
      const int k = j * STEP + w * WARP_COLUMNS + 4 * l;
      if (k >= a.k || (row < ROWS && row >= count)) continue;
      const char* from = row < ROWS
                             ? a.in + (int64_t{first + row} * a.k + k) * 4
                             : a.data[0] + min(column0 + row - ROWS, a.n - 1) * a.row_bytes + 4 * k;
      copy16(to + row * stride + 4 * piece, from, 16);
    }
  };
  for (int stage = 0; stage < depth - 1; stage++) {
    copy(stage);
    commit_copies();
  }

  // Of the thread: rows row, row + 4, ..., columns column and column + 8.
  const int row = warp / 4 * 4 * OWN + lane / 8, column = warp % 4 * 16 + lane % 8;
  float total[OWN][2], even[2][OWN][2];
  for (int stage = 0; stage < STAGES; stage++) {
    if (depth > 1) {
      if (depth == 2) {
        wait_copies<0>();
      } else if (depth == 3) {
        wait_copies<1>();
      } else {
        wait_copies<MOST_DEPTH - 2>();
      }
      __syncthreads();
      if (stage + depth - 1 < STAGES) copy(stage + depth - 1);
      commit_copies();
    } else {
      __syncthreads();
      copy(stage);
      commit_copies();
      wait_copies<0>();
      __syncthreads();
    }
    const float* at = ring + stage % depth * stage_floats;
    const float *x = at + row * stride, *weight = at + (ROWS + column) * stride;
    const int begin = stage / 2 * WARP_COLUMNS + stage % 2 * 8;
    // Lanes of one parity: eight leaves, neighbours first.
    const auto tree = [&](int parity, float (&sum)[OWN][2]) {
      float level[3][OWN][2];
#pragma unroll
      for (int leaf = 0; leaf < 8; leaf++) {
        const int four = leaf % 2 * 4 + leaf / 2 % 2 * 2 + leaf / 4;
#pragma unroll
        for (int i = 0; i < OWN; i++) sum[i][0] = sum[i][1] = 0;
#pragma unroll
        for (int j = 0; j < steps; j++) {
          if (STEPS == 0 && j * STEP + begin + 16 * four + 4 * parity >= a.k) break;
          const int offset = j * STAGE_COLUMNS + 8 * four + 4 * parity;
          float4 w[2];
#pragma unroll
          for (int c = 0; c < 2; c++) {
            w[c] = *reinterpret_cast<const float4*>(weight + 8 * c * stride + offset);
          }
#pragma unroll
          for (int i = 0; i < OWN; i++) {
            const float4 v = *reinterpret_cast<const float4*>(x + 4 * i * stride + offset);
#pragma unroll
            for (int c = 0; c < 2; c++) sum[i][c] = f32_step(sum[i][c], w[c], v);
          }
        }
#pragma unroll
        for (int i = 0; i < OWN; i++) {
#pragma unroll
          for (int c = 0; c < 2; c++) {
#pragma unroll
            for (int l = 0; l < 3; l++) {
              if ((leaf >> l & 1) == 0) {
                level[l][i][c] = sum[i][c];
                break;
              }
              sum[i][c] = __fadd_rn(level[l][i][c], sum[i][c]);
            }
          }
        }
      }
    };
    float sums[2][OWN][2];
    tree(0, sums[0]);
    tree(1, sums[1]);
#pragma unroll
    for (int i = 0; i < OWN; i++) {
#pragma unroll
      for (int c = 0; c < 2; c++) {
        if (stage % 2 == 0) {
          even[0][i][c] = sums[0][i][c];
          even[1][i][c] = sums[1][i][c];
          continue;
        }
        const float all = __fadd_rn(__fadd_rn(even[0][i][c], sums[0][i][c]),
                                    __fadd_rn(even[1][i][c], sums[1][i][c]));
        total[i][c] = stage == 1 ? all : __fadd_rn(total[i][c], all);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < OWN; i++) {
#pragma unroll
    for (int c = 0; c < 2; c++) {
      const int to = column0 + column + 8 * c;
      if (row + 4 * i < count && to < a.n) stream_store(a, first + row + 4 * i, to, total[i][c]);
    }
  }
}

template <int STEPS>
bool launch_rows(const Launch& at, const StreamArguments& a, int64_t slots) {
  const int steps = (a.k + STEP - 1) / STEP;
  const size_t stage = size_t{4} * (ROWS + COLUMNS) * stage_row(steps);
  const int depth = static_cast<int>(std::min<size_t>(MOST_DEPTH, stream_shared_limit() / stage));
  if (depth < 1) return false;
  const auto kernel = f32_rows_kernel<STEPS>;
  allow_shared(kernel);
  const dim3 grid(static_cast<unsigned>((slots + ROWS - 1) / ROWS),
                  static_cast<unsigned>((a.n + COLUMNS - 1) / COLUMNS));
  launch(at, kernel, grid, dim3(THREADS), depth * stage, a, depth);
  return true;
}

}  // namespace

bool stream_product_f32_rows(const Launch& at, const StreamArguments& a, int64_t slots) {
  if (a.plan || a.pair || slots < LEAST_ROWS || a.k % 4 != 0 || a.in_dtype != MOELA_F32) {
    return false;
  }
  // The K of V2-Lite and Moonlight, in a loop without counters.
  if (a.k == 2 * STEP) return launch_rows<2>(at, a, slots);
  return launch_rows<0>(at, a, slots);
}

}  // namespace moela::cuda
