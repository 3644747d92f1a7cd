// mla_prefill for any shape and any GPU, f32 arithmetic, window by window:
// - project: [keys, heads, dn + dv] = latents [keys, r] kv_b_proj^T,
// - attend: tiles of 32 rows of a head take blocks of 32 keys ascending from their segment's key 0.
// A row's sums depend on its own keys only: a key beyond its position weighs exactly 0.
#include <cuda_bf16.h>

#include "cuda/mla_prefill.cuh"
#include "cuda/mla_weight.cuh"

namespace moela::cuda {

namespace {

constexpr int THREADS = 256;
constexpr int PROJECT_TILE = 64;
constexpr int PROJECT_STEP = 16;
constexpr int ROWS = 32;            // of a tile: 4 a warp
constexpr int KEYS = 32;            // of a block: one a lane
constexpr int VALUES_PER_LANE = 8;  // dv <= 256

struct ProjectArgs {
  MlaPrefillPass pass;
  Weight kv_b;
};

// A block makes 64 keys of 64 rows of kv_b_proj, a thread 4 by 4.
__global__ void __launch_bounds__(THREADS) project(const __grid_constant__ ProjectArgs a) {
  wait_for_previous();
  allow_next();
  alignas(16) __shared__ float latents[PROJECT_STEP][PROJECT_TILE + 4],
      weights[PROJECT_STEP][PROJECT_TILE + 4];
  const MlaPrefillPass& pass = a.pass;
  const int r = int(pass.shape.r);
  const int64_t width = int64_t{pass.heads} * (pass.shape.dn + pass.shape.dv);
  const int64_t first_row = int64_t{pass.head} * (pass.shape.dn + pass.shape.dv);
  const int64_t key = int64_t{blockIdx.x} * PROJECT_TILE, col = int64_t{blockIdx.y} * PROJECT_TILE;
  if (pass.block + key / MLA_PREFILL_TILE >= pass.tables->n_blocks) return;
  const float* in = reinterpret_cast<const float*>(pass.latents);
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  float sums[4][4] = {};
  for (int k = 0; k < r; k += PROJECT_STEP) {
    for (int i = threadIdx.x; i < PROJECT_STEP * PROJECT_TILE; i += THREADS) {
      const int d = i % PROJECT_STEP, row = i / PROJECT_STEP;
      const bool inside = k + d < r;
      latents[d][row] = inside ? in[(key + row) * r + k + d] : 0.f;
      weights[d][row] =
          inside && col + row < width ? weight_value(a.kv_b, first_row + col + row, k + d) : 0.f;
    }
    __syncthreads();
#pragma unroll
    for (int d = 0; d < PROJECT_STEP; d++) {
      const float4 p = *reinterpret_cast<const float4*>(&latents[d][y * 4]);
      const float4 q = *reinterpret_cast<const float4*>(&weights[d][x * 4]);
      const float ps[4] = {p.x, p.y, p.z, p.w}, qs[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
      for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) sums[i][j] = fmaf(ps[i], qs[j], sums[i][j]);
      }
    }
    __syncthreads();
  }
  float* out = reinterpret_cast<float*>(pass.keys);
#pragma unroll
  for (int i = 0; i < 4; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int64_t c = col + x * 4 + j;
      if (c < width) out[(key + y * 4 + i) * width + c] = sums[i][j];
    }
  }
}

struct AttendArgs {
  MlaPrefillPass pass;
  const int32_t* n_absorbed;
  const void* q;
  void* out;
  int32_t q_bf16, out_bf16;
};

// Floats between rows of the tiles: 4 modulo 32, so that lanes' 16-byte reads spread over the
// banks.
__host__ __device__ int padded(int64_t width) { return int(width + 31) / 32 * 32 + 4; }

__global__ void __launch_bounds__(THREADS) attend(const __grid_constant__ AttendArgs a) {
  wait_for_previous();
  allow_next();
  MOELA_DYNAMIC_SHARED(float, memory);
  const MlaPrefillPass& pass = a.pass;
  const int dn = int(pass.shape.dn), dr = int(pass.shape.dr), dv = int(pass.shape.dv);
  const int dk = dn + dr, stride = padded(dk), heads = pass.heads;
  float* queries = memory;                // [ROWS][stride]
  float* keys = queries + ROWS * stride;  // [KEYS][stride]
  float* values = keys + KEYS * stride;   // [KEYS][dv]
  float* scores = values + KEYS * dv;     // [ROWS][KEYS]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int per_tile = int(MLA_PREFILL_TILE) / ROWS;
  const int n = pass.tables->n_tiles * heads * per_tile;
  for (int share = 0;; share++) {
    const int item = mla_prefill_share(share, n);
    if (item == -2) return;
    if (item < 0) continue;
    const MlaPrefillTile tile = pass.tables->tiles[item / (heads * per_tile)];
    const int head = item % heads, part = item / heads % per_tile;
    const int first_row = tile.row + part * ROWS, rows = min(ROWS, tile.rows - part * ROWS);
    if (rows <= 0) continue;
    const int position = tile.position + part * ROWS;
    // Of the segment: keys [0, end), of which this pass has [from, to).
    const int end = position + rows;
    const int offset = (pass.block - tile.block) * int(MLA_PREFILL_TILE);
    const int from = max(0, offset);
    const int to = min(end, offset + pass.blocks * int(MLA_PREFILL_TILE));
    if (from >= to) continue;
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS * dk; i += THREADS) {
      const int row = i / dk, d = i % dk;
      float x = 0;
      if (row < rows) {
        const int64_t at =
            (int64_t{first_row + row} * pass.shape.heads + pass.head + head) * dk + d;
        x = a.q_bf16 ? bf16_value(static_cast<const uint16_t*>(a.q)[at])
                     : static_cast<const float*>(a.q)[at];
      }
      queries[row * stride + d] = x;
    }
    for (int i = threadIdx.x; i < ROWS * (stride - dk); i += THREADS) {
      queries[i / (stride - dk) * stride + dk + i % (stride - dk)] = 0;
    }
    float most[4], sum[4], o[4][VALUES_PER_LANE];
    const auto state = [&](int i) {
      return pass.state +
             (int64_t{first_row + warp * 4 + i - *a.n_absorbed} * heads + head) * (dv + 8);
    };
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const bool restore = from > 0 && warp * 4 + i < rows;
      most[i] = restore ? state(i)[dv] : -INFINITY;
      sum[i] = restore ? state(i)[dv + 1] : 0;
#pragma unroll
      for (int j = 0; j < VALUES_PER_LANE; j++) {
        o[i][j] = restore && j * 32 + lane < dv ? state(i)[j * 32 + lane] : 0;
      }
    }
    for (int key = from; key < to; key += KEYS) {
      __syncthreads();
      const float* kv = reinterpret_cast<const float*>(pass.keys);
      const float* rotary = reinterpret_cast<const float*>(pass.rotary);
      const int64_t base = key - offset;
      for (int i = threadIdx.x; i < KEYS * stride; i += THREADS) {
        const int row = i / stride, d = i % stride;
        keys[i] = d < dn   ? kv[((base + row) * heads + head) * (dn + dv) + d]
                  : d < dk ? rotary[(base + row) * dr + d - dn]
                           : 0.f;
      }
      for (int i = threadIdx.x; i < KEYS * dv; i += THREADS) {
        values[i] = kv[((base + i / dv) * heads + head) * (dn + dv) + dn + i % dv];
      }
      __syncthreads();
      float dots[4] = {};
      for (int d = 0; d < dk; d += 4) {
        const float4 k = *reinterpret_cast<const float4*>(keys + lane * stride + d);
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float4 q = *reinterpret_cast<const float4*>(queries + (warp * 4 + i) * stride + d);
          dots[i] = fmaf(q.x, k.x, fmaf(q.y, k.y, fmaf(q.z, k.z, fmaf(q.w, k.w, dots[i]))));
        }
      }
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const bool seen = key + lane <= position + warp * 4 + i;
        const float score = seen ? dots[i] * pass.scale : -INFINITY;
        float largest = fmaxf(most[i], score);
        for (int d = 16; d > 0; d /= 2) {
          largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, d));
        }
        const float shrink = expf(most[i] - largest);
        const float p = expf(score - largest);
        float total = p;
        for (int d = 16; d > 0; d /= 2) total += __shfl_xor_sync(~0u, total, d);
        most[i] = largest;
        sum[i] = sum[i] * shrink + total;
        scores[(warp * 4 + i) * KEYS + lane] = p;
#pragma unroll
        for (int j = 0; j < VALUES_PER_LANE; j++) o[i][j] *= shrink;
      }
      __syncwarp();
#pragma unroll
      for (int j = 0; j < VALUES_PER_LANE; j++) {
        if (j * 32 + lane >= dv) continue;
        for (int s = 0; s < KEYS; s += 4) {
          float v[4];
#pragma unroll
          for (int t = 0; t < 4; t++) v[t] = values[(s + t) * dv + j * 32 + lane];
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const float4 p = *reinterpret_cast<const float4*>(scores + (warp * 4 + i) * KEYS + s);
            o[i][j] = fmaf(p.w, v[3], fmaf(p.z, v[2], fmaf(p.y, v[1], fmaf(p.x, v[0], o[i][j]))));
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (warp * 4 + i >= rows) continue;
      const int64_t at =
          (int64_t{first_row + warp * 4 + i} * pass.shape.heads + pass.head + head) * dv;
      const float inverse = 1 / sum[i];
#pragma unroll
      for (int j = 0; j < VALUES_PER_LANE; j++) {
        const int c = j * 32 + lane;
        if (c >= dv) continue;
        if (to < end) {
          state(i)[c] = o[i][j];
        } else if (a.out_bf16) {
          static_cast<__nv_bfloat16*>(a.out)[at + c] = __float2bfloat16_rn(o[i][j] * inverse);
        } else {
          static_cast<float*>(a.out)[at + c] = o[i][j] * inverse;
        }
      }
      if (to < end && lane == 0) state(i)[dv] = most[i], state(i)[dv + 1] = sum[i];
    }
  }
}

}  // namespace

void mla_prefill_project(const Launch& at, const MlaPrefillPass& pass, const Weight& kv_b) {
  const ProjectArgs args = {pass, kv_b};
  const int64_t keys = pass.blocks * MLA_PREFILL_TILE;
  const int64_t width = pass.heads * (pass.shape.dn + pass.shape.dv);
  const dim3 grid(unsigned(keys / PROJECT_TILE),
                  unsigned((width + PROJECT_TILE - 1) / PROJECT_TILE));
  launch(at, &project, grid, dim3(THREADS), 0, args);
}

void mla_prefill_attend(const Launch& at, const MlaPrefillPass& pass, Tensor q, Tensor out) {
  if (pass.shape.dv > 32 * VALUES_PER_LANE) {
    throw Error(MOELA_ERR_ARGUMENT,
                format("Cannot prefill: v_head_dim is %lld, and must be at most %d",
                       static_cast<long long>(pass.shape.dv), 32 * VALUES_PER_LANE));
  }
  const AttendArgs args = {pass,     &at.step.counts->n_absorbed, q.data,
                           out.data, q.dtype == MOELA_BF16,       out.dtype == MOELA_BF16};
  const int stride = padded(pass.shape.dn + pass.shape.dr);
  const int shared =
      int(sizeof(float)) * ((ROWS + KEYS) * stride + KEYS * int(pass.shape.dv) + ROWS * KEYS);
  allow_shared(attend);
  launch(at, &attend, dim3(unsigned(at.sms * 4)), dim3(THREADS), size_t(shared), args);
}

}  // namespace moela::cuda
