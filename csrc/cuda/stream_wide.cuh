// The stream family for many rows: blocks of eight warps, each warp 16 rows of weights (with a
// gate: 8 of gate and the same 8 of up) and all of the tile's tokens. WARPS_K warps share the same
// rows and take a group of 128 of K each; their sums meet in shared memory, in ascending order of
// groups, so that the bits do not depend on WARPS_K.
//
// Weights go through a ring in which each thread has a place of its own (see stream_row.cuh),
// inputs through one that all warps read. Blocks stay, and the ring runs on from tile to tile.
#pragma once

#include "cuda/stream_pieces.cuh"
#include "cuda/stream_row.cuh"
#include "cuda/stream_tiles.cuh"

namespace moela::cuda {

constexpr int WIDE_WARPS = 8;
constexpr int WIDE_THREADS = 32 * WIDE_WARPS;
constexpr int WIDE_DEEPEST = 6;

// COPY: inputs are what products take (BF16, or quantized rows for the integer types) and begin on
// 16 bytes, so that they are copied in the background.
template <int DTYPE, int TOKENS, int WARPS_K, bool COPY>
struct Wide {
  using T = StreamType<DTYPE>;
  using Sum = typename T::Sum;
  static constexpr int WARPS_M = WIDE_WARPS / WARPS_K;
  static constexpr int TILES = TOKENS / 8, BESIDE = TILES < 4 ? TILES : 4;
  // Of a token's group in shared memory, chosen so that 16-byte reads of eight tokens meet no bank
  // twice.
  static constexpr int X_STRIDE = DTYPE == MOELA_BF16   ? 256 + 64
                                  : DTYPE == MOELA_FP8  ? 256 + 16
                                  : DTYPE == MOELA_INT8 ? 128 + 64
                                                        : 128 + 32;
  static constexpr int A_BYTES = T::PIECES * 16 * WIDE_THREADS;
  static constexpr int SCALE_BYTES = T::SCALED ? WIDE_WARPS * STREAM_TILE * 4 : 0;
  static constexpr int X_BYTES = WARPS_K * TOKENS * X_STRIDE;
  static constexpr int X_SCALE_BYTES = T::INTEGER ? WARPS_K * TOKENS * 4 : 0;
  static constexpr int STAGE = A_BYTES + SCALE_BYTES + X_BYTES + X_SCALE_BYTES;
  // Sums that a step's warps hand over, by warp, fragment and lane. A warp adds up those of
  // FRAGMENTS fragments; with few it is two, so that a pair's gate and up meet.
  static constexpr int SUMS = WARPS_K > 1 ? WIDE_WARPS * TILES * 4 * 32 : 0;
  static constexpr int FRAGMENTS = WARPS_K == 1              ? TILES * 4
                                   : TILES * 4 / WARPS_K < 4 ? 2
                                                             : TILES * 4 / WARPS_K;
  static constexpr int STRIDE = FRAGMENTS == 2 ? 2 : 1;  // between a warp's fragments
  static_assert(COPY || !T::INTEGER, "");
  // COPY: 16-byte pieces of a token's group, and tokens that the block's threads bring at once.
  static constexpr int X_PIECES = STREAM_GROUP * T::X_BYTES / 16;
  static constexpr int AT_ONCE = WIDE_THREADS / X_PIECES;
  // Columns of a tile that one thread (COPY) or one warp brings.
  static constexpr int BRINGS =
      COPY ? (TOKENS > AT_ONCE ? TOKENS / AT_ONCE : 1) : TOKENS / WIDE_WARPS;
  static constexpr int VALUES = COPY ? 1 : BRINGS * WARPS_K;  // groups of a warp, a step
  const StreamArguments& a;
  char* ring;
  float* sums;  // [2][SUMS]
  int* before;
  const int warp, lane, g, t, warp_m, warp_k;
  int steps_per_tile;
  int tiles;

  __host__ __device__ static size_t shared_bytes(int depth, int experts) {
    return static_cast<size_t>(depth) * STAGE + 2 * SUMS * 4 + (experts + 1) * 4;
  }
  __device__ Wide(const StreamArguments& arguments, char* shared)
      : a(arguments),
        ring(shared),
        sums(reinterpret_cast<float*>(shared + a.depth * STAGE)),
        before(reinterpret_cast<int*>(shared + a.depth * STAGE + 2 * SUMS * 4)),
        warp(threadIdx.x / 32),
        lane(threadIdx.x % 32),
        g(lane / 4),
        t(lane % 4),
        warp_m(warp % WARPS_M),
        warp_k(warp / WARPS_M),
        steps_per_tile((a.groups + WARPS_K - 1) / WARPS_K) {}

  __device__ char* stage(int slot) const { return ring + slot * STAGE; }
  __device__ char* x_at(int slot) const { return stage(slot) + A_BYTES + SCALE_BYTES; }
  // First row of the weights of this lane in a row tile.
  __device__ int first_row(int row_tile) const {
    return (row_tile * WARPS_M + warp_m) * (a.pair ? 8 : 16) + g;
  }

  // What brings steps in: a tile and where it is within it.
  const char* row[2];
  bool inside[2];
  const char* row_scales;  // of this lane: t 0 the first half's, 1 the second's
  int64_t scale_index;
  int brings[BRINGS];  // rows of `in`, -1: none
  int scale_row;       // INTEGER: the row whose scale this thread brings
  int bring_tile, bring_step;

  __device__ __forceinline__ void enter_rows(int expert, int row_tile) {
    const int first = first_row(row_tile);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int which = a.pair ? half : 0;
      const int at = a.pair ? first : first + 8 * half;
      inside[half] = at < a.n;
      row[half] = a.data[which] + expert * a.part[which] + (inside[half] ? at * a.row_bytes : 0);
      if (T::SCALED && t == half) {
        row_scales = inside[half] ? a.scales[which] + expert * a.scale_part[which] : nullptr;
        scale_index = static_cast<int64_t>(DTYPE == MOELA_FP8 ? at / 128 : at) * a.groups;
      }
    }
  }
  __device__ __forceinline__ void enter_tokens(const StreamTile& tile) {
#pragma unroll
    for (int i = 0; i < BRINGS; i++) {
      const int column =
          COPY ? (threadIdx.x / X_PIECES + AT_ONCE * i) % TOKENS : warp + WIDE_WARPS * i;
      brings[i] = tile_in_row(a, tile, column);
    }
    if constexpr (T::INTEGER) scale_row = tile_in_row(a, tile, threadIdx.x % TOKENS);
  }

  __device__ __forceinline__ void bring_weights(int slot) {
    const int group = bring_step * WARPS_K + warp_k;
    const int64_t begin = static_cast<int64_t>(group) * T::GROUP_BYTES + 16 * t;
    const int left = static_cast<int>(max(static_cast<int64_t>(0), a.row_bytes - begin));
    uint4* to = reinterpret_cast<uint4*>(stage(slot)) + threadIdx.x;
#pragma unroll
    for (int p = 0; p < T::PIECES; p++) {
      const int bytes = inside[p % 2] ? min(max(left - p / 2 * 64, 0), 16) : 0;
      const char* from = row[p % 2] + (bytes ? begin + p / 2 * 64 : 0);
      if (a.aligned)
        copy16(to + p * WIDE_THREADS, from, bytes);
      else
        to[p * WIDE_THREADS] = unaligned_piece(from, bytes);
    }
    if constexpr (T::SCALED) {
      if (t < 2) {
        const bool have = row_scales && group < a.groups;
        const int64_t index = scale_index + group;
        copy4(stage(slot) + A_BYTES + (warp * STREAM_TILE + g + 8 * t) * 4,
              have ? row_scales + (DTYPE == MOELA_INT8 ? index / 2 : index) * 4 : row[0],
              have ? 4 : 0);
      }
    }
  }

  // COPY: this thread's pieces of the inputs of the step to bring, in the background.
  __device__ __forceinline__ void bring_copies(int slot) {
    char* to = x_at(slot);
    const int64_t row_bytes = T::INTEGER ? int64_t{a.groups} * STREAM_GROUP : 2LL * a.k;
#pragma unroll
    for (int i = 0; i < WARPS_K * TOKENS * X_PIECES / WIDE_THREADS; i++) {
      const int index = threadIdx.x + WIDE_THREADS * i;
      const int token = index / X_PIECES % TOKENS, k_warp = index / (X_PIECES * TOKENS);
      const int from_row = brings[i % BRINGS];
      const int64_t offset =
          (static_cast<int64_t>(bring_step * WARPS_K + k_warp) * X_PIECES + index % X_PIECES) * 16;
      const int64_t left = from_row >= 0 ? row_bytes - offset : 0;
      const int bytes = left >= 16 ? 16 : left > 0 ? static_cast<int>(left) : 0;
      copy16(to + (k_warp * TOKENS + token) * X_STRIDE + index % X_PIECES * 16,
             bytes ? a.in + row_bytes * from_row + offset : a.data[0], bytes);
    }
    if constexpr (T::INTEGER) {
      static_assert(WARPS_K * TOKENS <= WIDE_THREADS, "");
      if (threadIdx.x < WARPS_K * TOKENS) {
        const int group = bring_step * WARPS_K + threadIdx.x / TOKENS;
        const bool have = scale_row >= 0 && group < a.groups;
        const void* from = a.data[0];
        if (have) from = a.in_scales + static_cast<int64_t>(scale_row) * a.groups + group;
        copy4(to + X_BYTES + threadIdx.x * 4, from, have ? 4 : 0);
      }
    }
  }
  // Otherwise a warp a token's group, in two parts: there is time for the first while products run.
  __device__ __forceinline__ void load_values(float4 (&v)[VALUES]) {
#pragma unroll
    for (int i = 0; i < VALUES; i++) {
      const int first = (bring_step * WARPS_K + i / BRINGS) * STREAM_GROUP + 4 * lane;
      v[i] = float4{0, 0, 0, 0};
      if (brings[i % BRINGS] >= 0 && first < a.k) {
        v[i] = load4_of(a.in, a.in_dtype, brings[i % BRINGS], first, a.k);
      }
    }
  }
  __device__ __forceinline__ void store_values(int slot, const float4 (&v)[VALUES]) {
    char* to = x_at(slot);
#pragma unroll
    for (int i = 0; i < VALUES; i++) {
      const int token = i / BRINGS * TOKENS + warp + WIDE_WARPS * (i % BRINGS);
      char* place = to + token * X_STRIDE + 8 * lane;
      *reinterpret_cast<uint2*>(place) =
          uint2{bf16_pair(v[i].x, v[i].y), bf16_pair(v[i].z, v[i].w)};
    }
  }
  __device__ __forceinline__ void bring_next() {
    if (bring_tile >= tiles || ++bring_step < steps_per_tile) return;
    bring_step = 0;
    bring_tile += gridDim.x;
    if (bring_tile < tiles) enter(find_tile<TOKENS>(a, before, bring_tile));
  }
  __device__ __forceinline__ void enter(const StreamTile& tile) {
    enter_rows(tile.expert, tile.row_tile);
    enter_tokens(tile);
  }

  // One step's products of this warp, scaled: added to `to`, or left there when warps share rows.
  __device__ __forceinline__ void compute(int slot, int step, int row_tile, int live,
                                          float (&to)[TILES * 4]) {
    uint4 w[T::PIECES];
    const uint4* from = reinterpret_cast<const uint4*>(stage(slot)) + threadIdx.x;
#pragma unroll
    for (int p = 0; p < T::PIECES; p++) w[p] = from[p * WIDE_THREADS];
    uint32_t scale = 0, scale8 = 0;
    float factor = 1, factor8 = 1;
    if constexpr (T::SCALED) {
      const uint32_t* scales =
          reinterpret_cast<const uint32_t*>(stage(slot) + A_BYTES) + warp * STREAM_TILE;
      scale = scales[g];
      scale8 = scales[g + 8];
      const int odd = (first_row(row_tile) & a.groups) ^ (step * WARPS_K + warp_k);
      factor = T::scale(scale, odd & 1);
      factor8 = T::scale(scale8, odd & 1);
    }
    const char* x = x_at(slot) + (warp_k * TOKENS + g) * X_STRIDE;
    const float* x_scales =
        reinterpret_cast<const float*>(x_at(slot) + X_BYTES) + warp_k * TOKENS + 2 * t;
    // Several tiles at a time: their chains of products run side by side.
#pragma unroll
    for (int first = 0; first < TILES; first += BESIDE) {
      if (first >= live) break;
      Sum c[BESIDE][4] = {};
      uint4 b[BESIDE][T::B_PIECES];
#pragma unroll
      for (int part = 0; part < T::PARTS; part++) {
#pragma unroll
        for (int j = 0; j < BESIDE; j++) {
          const char* from_x = x + (first + j) * 8 * X_STRIDE;
#pragma unroll
          for (int i = T::b_first(part); i < T::b_end(part); i++) {
            b[j][i] = *reinterpret_cast<const uint4*>(from_x + T::b_offset(i, t));
          }
        }
#pragma unroll
        for (int j = 0; j < BESIDE; j++) T::product(part, c[j], w, b[j], scale, scale8, t);
      }
#pragma unroll
      for (int j = 0; j < BESIDE; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          float value = static_cast<float>(c[j][i]);
          if constexpr (T::INTEGER) {
            const float x_scale = x_scales[(first + j) * 8 + i % 2];
            value = __fmul_rn(value, __fmul_rn(x_scale, i < 2 ? factor : factor8));
          } else if constexpr (T::SCALED) {
            value = __fmul_rn(value, i < 2 ? factor : factor8);
          }
          float& sum = to[(first + j) * 4 + i];
          sum = WARPS_K > 1 ? value : __fadd_rn(sum, value);
        }
      }
    }
  }

  // Fragment f of this warp's sums among all of the tile.
  __device__ int fragment(int f) const {
    return WARPS_K == 1 ? f : STRIDE == 2 ? warp_k + 2 * f : warp_k * FRAGMENTS + f;
  }
  __device__ __forceinline__ void hand_over(int buffer, const float (&values)[TILES * 4]) {
    float* to = sums + buffer * SUMS + warp * TILES * 4 * 32 + lane;
#pragma unroll
    for (int f = 0; f < TILES * 4; f++) to[f * 32] = values[f];
  }
  __device__ __forceinline__ void add_up(int buffer, float (&acc)[FRAGMENTS]) {
    if (STRIDE == 2 && warp_k >= 2) return;
#pragma unroll
    for (int f = 0; f < FRAGMENTS; f++) {
      const float* from = sums + buffer * SUMS + (warp_m * TILES * 4 + fragment(f)) * 32 + lane;
#pragma unroll
      for (int k = 0; k < WARPS_K; k++) {
        acc[f] = __fadd_rn(acc[f], from[k * WARPS_M * TILES * 4 * 32]);
      }
    }
  }

  // Writes a tile's sums and makes them zero. One place writes them all, the sums moving by: code
  // that is run once a tile costs what reading it takes.
  __device__ __forceinline__ void finish(const StreamTile& tile, float (&acc)[FRAGMENTS]) {
    constexpr bool TWO = STRIDE == 2;  // one token of eight, both halves of the rows
    constexpr int STEP = TWO ? 2 : 4, COUNT = FRAGMENTS / STEP;
    const int first = first_row(tile.row_tile);
    const int tile0 = TWO || WARPS_K == 1 ? 0 : warp_k * COUNT;
#pragma unroll 1
    for (int j = 0; j < COUNT; j++) {
      if (TWO && warp_k >= 2) break;
#pragma unroll 1
      for (int i = 0; i < STEP / 2; i++) {
        const int slot = tile_slot(a, tile, (tile0 + j) * 8 + 2 * t + (TWO ? warp_k : i));
        const float low = i == 0 ? acc[0] : acc[1];
        const float high = TWO ? acc[1] : i == 0 ? acc[2 % FRAGMENTS] : acc[3 % FRAGMENTS];
        const float value = a.pair ? silu_mul(low, high) : low;
        if (slot >= 0) {
#pragma unroll 1
          for (int half = 0; half < (a.pair ? 1 : 2); half++) {
            if (first + 8 * half < a.n) {
              stream_store(a, slot, first + 8 * half, half == 0 ? value : high);
            }
          }
        }
      }
#pragma unroll
      for (int f = 0; f + STEP < FRAGMENTS; f++) acc[f] = acc[f + STEP];
    }
#pragma unroll
    for (int f = 0; f < FRAGMENTS; f++) acc[f] = 0;
  }

  __device__ __forceinline__ void run() {
    const int depth = a.depth;
    bring_tile = blockIdx.x;
    bring_step = 0;
    // With one tile of tokens at most, the first tile is known beforehand.
    int early = a.single ? min(steps_per_tile, depth - 1) : 0;
    if (a.single) enter_rows(0, blockIdx.x);
    for (; bring_step < early; bring_step++) bring_weights(bring_step);
    bring_step = 0;
    wait_for_previous();
    allow_next();
    count_tiles<TOKENS>(a, before);
    tiles = before[a.experts] * a.row_tiles;
    if (bring_tile >= tiles) {
      wait_copies<0>();
      return;
    }
    StreamTile tile = find_tile<TOKENS>(a, before, bring_tile), previous = tile;
    enter(tile);

    float acc[FRAGMENTS];
#pragma unroll
    for (int f = 0; f < FRAGMENTS; f++) acc[f] = 0;
    int at = blockIdx.x, step = 0, slot = 0, buffer = 0, fill = depth - 1;
    int live = (tile.slots.end - tile.slots.begin + 7) / 8;
    bool pending = false, pending_last = false;
    while (true) {
      int to = depth - 1 - fill;
      if (fill == 0) {
        to = slot == 0 ? depth - 1 : slot - 1;
        wait_copies_at_most(depth - 2);
        __syncthreads();
        if constexpr (WARPS_K > 1) {
          if (pending) {
            add_up(buffer ^ 1, acc);
            if (pending_last) finish(previous, acc);
          }
        }
        if (at >= tiles) break;
      }
      const bool bringing = bring_tile < tiles;
      float4 values[VALUES];
      if (bringing) {
        if (early <= 0) bring_weights(to);
        if constexpr (COPY)
          bring_copies(to);
        else
          load_values(values);
      }
      early--;
      commit_copies();
      const bool last = step + 1 == steps_per_tile;
      if (fill == 0) {
        if constexpr (WARPS_K == 1) {
          compute(slot, step, tile.row_tile, live, acc);
          if (last) finish(tile, acc);
        } else {
          float sums_of_step[TILES * 4];
#pragma unroll
          for (int f = 0; f < TILES * 4; f++) sums_of_step[f] = 0;
          compute(slot, step, tile.row_tile, live, sums_of_step);
          hand_over(buffer, sums_of_step);
          pending = true;
          pending_last = last;
          previous = tile;
          buffer ^= 1;
        }
      }
      if constexpr (!COPY) {
        if (bringing) store_values(to, values);
      }
      bring_next();
      if (fill > 0) {
        fill--;
        continue;
      }
      slot = slot + 1 == depth ? 0 : slot + 1;
      step++;
      if (last) {
        step = 0;
        at += gridDim.x;
        if (at < tiles) {
          tile = find_tile<TOKENS>(a, before, at);
          live = (tile.slots.end - tile.slots.begin + 7) / 8;
        }
      }
    }
  }
};

}  // namespace moela::cuda
