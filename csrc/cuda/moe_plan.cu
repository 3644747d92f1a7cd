// Which rows each expert gets: from chosen [R, k] the plan [E + 1 + R k], E + 1 offsets and then
// the slots (row * k + rank) sorted by expert, then by slot. An id outside [0, E) is left out.
//
// A block an expert: it counts the slots of lower experts, which says where its own begin, and
// writes those in order. Each block reads all choices, which the L2 cache serves, and none waits
// for another.
#include "cuda/rows.cuh"

namespace moela::cuda {
namespace {

constexpr int MOST_THREADS = 1024;
constexpr int AHEAD = 8;  // choices of a lane on their way at a time

__global__ void __launch_bounds__(MOST_THREADS)
    moe_plan_kernel(Step step, int rows, int experts, int top_k, const int32_t* chosen,
                    int32_t* plan) {
  __shared__ int lower[MOST_THREADS / 32], own[MOST_THREADS / 32];
  wait_for_previous();
  allow_next();
  const uint32_t expert = blockIdx.x;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int64_t first = static_cast<int64_t>(step.begin(rows)) * top_k;
  const int64_t end = static_cast<int64_t>(step.end(rows)) * top_k;
  // A run of whole 32s for each warp.
  const int64_t run = (end - first + 32 * warps - 1) / (32 * warps) * 32;
  const int64_t begin = first + warp * run, stop = min(begin + run, end);

  int n_lower = 0, n_own = 0;
  for (int64_t base = begin + lane; base < stop; base += 32 * AHEAD) {
    uint32_t e[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      e[i] = base + 32 * i < stop ? static_cast<uint32_t>(chosen[base + 32 * i]) : 0xffffffffu;
    }
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      n_lower += e[i] < expert;
      n_own += e[i] == expert;
    }
  }
  n_lower = __reduce_add_sync(0xffffffff, n_lower);
  n_own = __reduce_add_sync(0xffffffff, n_own);
  if (lane == 0) {
    lower[warp] = n_lower;
    own[warp] = n_own;
  }
  __syncthreads();
  const int all_lower = __reduce_add_sync(0xffffffff, lane < warps ? lower[lane] : 0);
  const int all_own = __reduce_add_sync(0xffffffff, lane < warps ? own[lane] : 0);
  const int before = __reduce_add_sync(0xffffffff, lane < warp ? own[lane] : 0);
  if (threadIdx.x == 0) {
    plan[expert] = all_lower;
    if (expert + 1 == static_cast<uint32_t>(experts)) plan[experts] = all_lower + all_own;
  }
  if (n_own == 0) return;
  int32_t* slots = plan + experts + 1 + all_lower + before;
  for (int64_t base = begin; base < stop; base += 32 * AHEAD) {
    uint32_t e[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      const int64_t slot = base + 32 * i + lane;
      e[i] = slot < stop ? static_cast<uint32_t>(chosen[slot]) : 0xffffffffu;
    }
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      const uint32_t mine = __ballot_sync(0xffffffff, e[i] == expert);
      if (e[i] == expert) {
        slots[__popc(mine & ((1u << lane) - 1))] = static_cast<int32_t>(base + 32 * i + lane);
      }
      slots += __popc(mine);
    }
  }
}

}  // namespace

void moe_plan(const Launch& at, int32_t rows, int64_t experts, int64_t top_k, const int32_t* chosen,
              int32_t* plan) {
  const int64_t slots = most_rows(at, rows) * top_k;
  const int64_t threads = (slots + 31) / 32 * 32;
  launch(at, moe_plan_kernel, dim3(static_cast<unsigned>(experts)),
         dim3(static_cast<unsigned>(threads < 32             ? 32
                                    : threads > MOST_THREADS ? MOST_THREADS
                                                             : threads)),
         0, at.step, rows, static_cast<int>(experts), static_cast<int>(top_k), chosen, plan);
}

}  // namespace moela::cuda
