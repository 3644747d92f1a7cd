// Attention of persistent.cu for one row: what mla_decode_cluster.cu does, with the same sums in
// the same order. The row's keys are cut into splits and those into parts as there, where a cluster
// has a split and each of its blocks a part; here a block has a part, and parts are merged by
// whoever reads them (persistent_expand.cuh). The running softmax: arXiv 2205.14135.
#pragma once

#include "cuda/cache_tile.cuh"
#include "cuda/persistent_entry.cuh"
#include "cuda/ring.cuh"

namespace moela::cuda::persistent {

#if __CUDA_ARCH__ >= 900

__device__ __forceinline__ Place place_of(const Step& step, const MlaSplits& splits) {
  Place at;
  at.position = step.positions[0];
  at.keys = at.position + 1;
  const moela_segment& segment = step.segments[step.row_segment[0]];
  at.page = segment.page;
  at.pool = segment.pool;
  at.length = mla_split_keys(splits, at.keys);
  at.splits = (at.keys + at.length - 1) / at.length;
  return at;
}
// A part of the keys, of all splits.
__device__ __forceinline__ MlaShare keys_of(const Place& at, int part) {
  return mla_share(at.keys, at.length, part / MLA_SHARES, part % MLA_SHARES);
}

// Whether this block attends to the row's own entry, or writes it to the cache.
__device__ __forceinline__ bool makes_entry(const Place& at) {
  bool makes = blockIdx.x == gridDim.x - 1;
  for (int part = blockIdx.x; part < at.splits * MLA_SHARES; part += gridDim.x) {
    const MlaShare keys = keys_of(at, part);
    makes = makes || (keys.begin < keys.end && keys.end == at.keys);
  }
  return makes;
}

using Ring = RingPlace<STAGES>;

// The page of a key, of a tile that this block has in every layer.
template <int DTYPE>
__device__ __forceinline__ int page_of(const Arguments& a, Shared<DTYPE>& s, int key, int tile,
                                       bool first) {
  if (!first && tile < MOST_PAGES) return s.pages[tile];
  const int page = a.step.pages[s.place.page + key / MOELA_PAGE_TOKENS];
  if (tile < MOST_PAGES) {
    s.pages[tile] = page;
    __syncwarp();
  }
  return page;
}

// The warp that copies: cache rows of this block's parts of a layer.
template <int DTYPE>
__device__ __noinline__ Ring copy_keys(int layer, Ring ring) {
  Shared<DTYPE>& s = shared_memory<DTYPE>();
  const Arguments& a = s.a;
  const Place& at = s.place;
  const int lane = threadIdx.x % 32;
  const PagePool& pool = s.pool;
  const int row_bytes = static_cast<int>(pool.row_bytes);
  const bool scaled = pool.dtype != MOELA_BF16;
  const char* base = pool.base + layer * pool.layer_bytes;
  int tile = 0;
#pragma unroll 1
  for (int part = blockIdx.x; part < at.splits * MLA_SHARES; part += gridDim.x) {
    const MlaShare keys = keys_of(at, part);
#pragma unroll 1
    for (int key = keys.begin; key < keys.end; key += TILE) {
      // The row's own entry is made by those who attend to it.
      const int page = page_of(a, s, key, tile++, layer == 0);
      const int row = key % MOELA_PAGE_TOKENS, rows = min(TILE, min(keys.end, at.position) - key);
      const char* from = base + page * pool.page_bytes;
      const uint32_t full = shared_address(&s.full[ring.stage]);
      const uint32_t to = shared_address(s.stage_at(ring.stage));
      barrier_wait(shared_address(&s.empty[ring.stage]), ring.phase ^ 1);
      // The second stage has the products' input until then.
      if (ring.stage > 0) wait_until(&s.projected, layer + 1);
      fence_async_proxy();
      if (lane == 0) {
        barrier_arrive_expect(full, rows * row_bytes + (scaled ? 2 * TILE : 0));
      }
      if (lane == 0 && scaled) {
        // As they are, at the stage's end: they become bf16 in place.
        if (rows > 0) {
          bulk_load(to + TILE * ROW - TILE * row_bytes, from + row * row_bytes, rows * row_bytes,
                    full);
        }
        bulk_load(shared_address(s.codes[ring.stage]),
                  from + MOELA_PAGE_TOKENS * row_bytes + 2 * row, 2 * TILE, full);
      }
      __syncwarp();
      if (!scaled && lane < rows) {
        bulk_load(to + lane * ROW, from + (row + lane) * row_bytes, row_bytes, full);
      }
      ring.next();
    }
  }
  return ring;
}

// A function of its own: its instructions are not those of a bf16 cache.
template <int CACHE>
__device__ __noinline__ void to_bf16(char* stage, const uint8_t (*codes)[2], int rows) {
  cache_tile_to_bf16<CACHE, THREADS, TILE, R, DR, ROW>(stage, codes, rows, sync);
}

// The queries as fragments of A: of a warp's quarter of the dims, heads g and g + 8.
template <int DTYPE>
__device__ __forceinline__ void load_query(int layer, uint32_t (&out)[9][4]) {
  Shared<DTYPE>& s = shared_memory<DTYPE>();
  const Arguments& a = s.a;
  constexpr int EACH = HEADS * WIDTH / THREADS / 2;  // pairs of a thread
  static_assert(EACH * THREADS * 2 == HEADS * WIDTH && WIDTH % 2 == 0, "");
  const int all = a.model.heads * WIDTH;
  float2 v[EACH];
  // Heads that there are not are read as the first, and become zeros.
  receive(v, s.epoch + layer, [&](int i) {
    const int at = 2 * (threadIdx.x + THREADS * i);
    return a.to.q_latent + (at < all ? at : 0);
  });
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int at = 2 * (threadIdx.x + THREADS * i);
    *reinterpret_cast<uint32_t*>(&s.query[at / WIDTH][at % WIDTH * 2]) =
        at < all ? bf16_pair(v[i].x, v[i].y) : 0;
  }
  sync();
  const int lane = threadIdx.x % 32, quarter = threadIdx.x / 32 % 4;
  const uint32_t from = shared_address(s.query) + lane % 16 * ROW + lane / 16 * 16 + quarter * 288;
#pragma unroll
  for (int k = 0; k < 9; k++) load_matrices(out[k], from + 32 * k);
}

// This block's parts of the attention: weighted sums of latents, relative to 2^maximum.
template <int DTYPE>
__device__ __noinline__ Ring attend(int layer, Ring ring) {
  Shared<DTYPE>& s = shared_memory<DTYPE>();
  const Arguments& a = s.a;
  const Place& at = s.place;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4;
  const int t = lane % 4, quarter = warp % 4, eight = warp / 4;  // of dims, of keys
  const int dtype = s.pool.dtype;
  const int parts = at.splits * MLA_SHARES;
  const uint32_t epoch = s.epoch + layer;
  bool loaded = false;
  uint32_t query[9][4];
#pragma unroll 1
  for (int part = blockIdx.x; part < parts; part += gridDim.x) {
    const MlaShare keys = keys_of(at, part);
    if (keys.begin >= keys.end) continue;
    float o[4][4] = {};
    float maximum = -INFINITY, sum = 0;  // of head `warp`
#pragma unroll 1
    for (int key = keys.begin; key < keys.end; key += TILE) {
      const int valid = min(TILE, keys.end - key);
      char* stage = s.stage_at(ring.stage);
      barrier_wait(shared_address(&s.full[ring.stage]), ring.phase);
      if (key + valid == at.keys) {
        const int own = valid - 1, row_bytes = static_cast<int>(s.pool.row_bytes);
        put_entry<DTYPE>(dtype == MOELA_BF16 ? stage + own * ROW
                                             : stage + TILE * (ROW - row_bytes) + own * row_bytes,
                         s.codes[ring.stage][own]);
        sync();
        if (threadIdx.x < 32) mark_other(layer, 4);
      }
      if (!loaded) {
        load_query<DTYPE>(layer, query);
        loaded = true;
        if (threadIdx.x < 32) mark_other(layer, 5);
      }
      bool written = true;
      switch (dtype) {
        case MOELA_FP8:
          to_bf16<MOELA_FP8>(stage, s.codes[ring.stage], valid);
          break;
        case MOELA_INT8:
          to_bf16<MOELA_INT8>(stage, s.codes[ring.stage], valid);
          break;
        case MOELA_INT6:
          to_bf16<MOELA_INT6>(stage, s.codes[ring.stage], valid);
          break;
        default:
          // What lies beyond must not enter, not even with weight 0.
          written = valid < TILE || key + valid == at.keys;
#pragma unroll 1
          for (int j = valid * (ROW / 16) + thread; j < TILE * (ROW / 16); j += THREADS) {
            reinterpret_cast<uint4*>(stage)[j] = {0, 0, 0, 0};
          }
      }
      if (written) sync();

      // Scores: even and odd steps of K apart.
      float c[2][4] = {};
      const uint32_t from =
          shared_address(stage) + (eight * 8 + lane % 8) * ROW + lane / 8 * 16 + quarter * 288;
#pragma unroll
      for (int k = 0; k < 9; k += 2) {
        uint32_t b[4];
        load_matrices(b, from + 32 * k);
        mma_bf16(c[0], query[k][0], query[k][1], query[k][2], query[k][3], b[0], b[1]);
        if (k + 1 < 9) {
          const uint32_t* q = query[k + 1];
          mma_bf16(c[1], q[0], q[1], q[2], q[3], b[2], b[3]);
        }
      }
      {
        float* to = &s.scores[quarter][g][eight * 8 + 2 * t];
        *reinterpret_cast<float2*>(to) = {c[0][0] + c[1][0], c[0][1] + c[1][1]};
        *reinterpret_cast<float2*>(to + 8 * S_STRIDE) = {c[0][2] + c[1][2], c[0][3] + c[1][3]};
      }
      sync();

      // The running softmax: a warp a head, a key a lane.
      {
        const float* score = &s.scores[0][warp][lane];
        float x = score[0];
#pragma unroll
        for (int k = 1; k < 4; k++) x += score[k * HEADS * S_STRIDE];
        x = lane < valid ? x * 1.44269504088896341f : -INFINITY;
        float most = x;
#pragma unroll
        for (int k = 16; k > 0; k /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, k));
        most = fmaxf(most, maximum);
        const uint32_t bits = bf16_pair(power2(x - most), 0) & 0xffff;
        s.weights[warp][lane] = static_cast<uint16_t>(bits);
        const float p = bf16_value(bits);
        const float factor = power2(maximum - most);
        if (lane == 0) s.factors[warp] = factor;
        // Of keys l and l + 16; these are added at the end.
        sum = fmaf(sum, factor, p + __shfl_xor_sync(~0u, p, 16));
        maximum = most;
      }
      sync();

      // Weights times latents: 32 columns a warp.
      const float factor0 = s.factors[g], factor8 = s.factors[g + 8];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        o[j][0] *= factor0;
        o[j][1] *= factor0;
        o[j][2] *= factor8;
        o[j][3] *= factor8;
      }
      const uint32_t weights =
          shared_address(s.weights) + lane % 16 * (P_STRIDE * 2) + lane / 16 * 16;
      const uint32_t values = shared_address(stage) + lane % 16 * ROW + warp * 64 + lane / 16 * 16;
#pragma unroll
      for (int k = 0; k < 2; k++) {
        uint32_t p[4];
        load_matrices(p, weights + 32 * k);
#pragma unroll
        for (int j = 0; j < 2; j++) {
          uint32_t b[4];
          load_transposed(b, values + k * 16 * ROW + 32 * j);
          mma_bf16(o[2 * j], p[0], p[1], p[2], p[3], b[0], b[1]);
          mma_bf16(o[2 * j + 1], p[0], p[1], p[2], p[3], b[2], b[3]);
        }
      }
      if (written) fence_async_proxy();
      __syncwarp();
      if (lane == 0) barrier_arrive(shared_address(&s.empty[ring.stage]));
      ring.next();
    }
    if (threadIdx.x < 32) mark_other(layer, 6);
    uint64_t* to = a.to.parts + int64_t{part} * HEADS * R + g * R + warp * 32 + 2 * t;
#pragma unroll
    for (int j = 0; j < 4; j++) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        send_pair(to + i * 8 * R + 8 * j, o[j][2 * i], o[j][2 * i + 1], epoch);
      }
    }
#pragma unroll
    for (int k = 8; k > 0; k /= 2) sum += __shfl_xor_sync(~0u, sum, k);
    if (lane == 0) {
      uint64_t* state = a.to.states + (int64_t{part} * HEADS + warp) * 2;
      send_pair(state, maximum, sum, epoch);
    }
  }
  sync();
  return ring;
}
static_assert(HEADS == WARPS && R == 32 * WARPS && TILE == 8 * WARPS / 4, "");

#endif  // __CUDA_ARCH__ >= 900

}  // namespace moela::cuda::persistent
