// The stream family for many rows on Hopper, BF16: the same products as stream_wide.cuh, to the
// bit, with warps that only bring operands. One brings weights by the tensor memory accelerator,
// two gather the tokens of experts, eight multiply: 16 rows of weights each (with a gate: 8 of gate
// and the same 8 of up), and a part of the tile's tokens where several warps have the same rows.
//
// Without a plan tokens come by the accelerator, too, and the blocks of a cluster share what they
// have in common, the tokens or the weights: what they read of the second-level cache was the
// limit.
//
// A stage is a group of 128 of K: of weights, then of tokens, two boxes of 64 columns in rows of
// 128 bytes, swizzled. A lane reads 16 bytes of a row at a time (see stream_types.cuh). Rows whose
// numbers within eight differ in their lowest bit would meet in the same banks, so that lane g / 4
// stands for row eighth(g): the bits of its number in reverse.
#pragma once

#include "cuda/stream_row.cuh"
#include "cuda/stream_tiles.cuh"
#include "cuda/tma.cuh"

namespace moela::cuda {

constexpr int RING_WARPS = 8;  // that multiply
constexpr int RING_GATHER = 64;
constexpr int RING_THREADS = 32 * RING_WARPS + RING_GATHER + 32;
constexpr int RING_DEEPEST = 8;

// What the blocks of a cluster have in common.
enum class RingShared { NOTHING, TOKENS, WEIGHTS };

struct RingArguments {
  StreamArguments stream;
  int32_t token_tiles;  // without a plan: of the step, some of them maybe empty
  bool up_first;        // the map's pairs are up, gate
};

// BLOCK_ROWS of weights and TOKENS a tile. CLUSTER 1: tokens are gathered.
template <int BLOCK_ROWS, int TOKENS, int CLUSTER, RingShared SHARED>
struct RingShape {
  static constexpr bool GATHERS = CLUSTER == 1;
  // Of a box, what one block brings for all.
  static constexpr int BRING_ROWS =
      SHARED == RingShared::WEIGHTS ? BLOCK_ROWS / CLUSTER : BLOCK_ROWS;
  static constexpr int BRING_TOKENS = SHARED == RingShared::TOKENS ? TOKENS / CLUSTER : TOKENS;
  static constexpr int SHARES = BLOCK_ROWS / 16;     // of rows; as many warps have different ones
  static constexpr int PARTS = RING_WARPS / SHARES;  // warps that share rows
  static constexpr int TILES = TOKENS / 8;
  static constexpr int OWN = (TILES + PARTS - 1) / PARTS;  // tiles of a warp: every PARTS-th
  static constexpr int BESIDE = OWN < 2 ? 1 : 2;           // chains of products side by side
  static constexpr int W_BOX = BLOCK_ROWS * 128, X_BOX = TOKENS * 128;
  static constexpr int STAGE = 2 * (W_BOX + X_BOX);
  static_assert(OWN % BESIDE == 0 && STAGE % 1024 == 0 && W_BOX % 1024 == 0, "");
  static_assert(BRING_ROWS % 16 == 0 && BRING_TOKENS % 8 == 0, "whole swizzles");
  static_assert(GATHERS == (SHARED == RingShared::NOTHING), "");

  static size_t shared_bytes(int depth, int experts) {
    return static_cast<size_t>(depth) * (STAGE + 16) + (3 * experts + 1) * 4;
  }
  // As deep as fits.
  static int depth(int experts) {
    int depth = RING_DEEPEST;
    while (shared_bytes(depth, experts) > stream_shared_limit()) depth--;
    return depth;
  }
};

#if __CUDA_ARCH__ >= 900
template <int BLOCK_ROWS, int TOKENS, int CLUSTER, RingShared SHARED>
struct RingProduct : RingShape<BLOCK_ROWS, TOKENS, CLUSTER, SHARED> {
  using S = RingShape<BLOCK_ROWS, TOKENS, CLUSTER, SHARED>;
  using T = StreamType<MOELA_BF16>;
  const StreamArguments& a;
  const int token_tiles;
  const bool up_first;
  const uint32_t ring;
  char* const memory;
  uint64_t *full, *empty;
  int *before, *begins, *ends;  // of each expert: tiles of tokens before it, its slots
  const int rank, first, step;  // of this block in its cluster, and the cluster's tiles
  int tiles;                    // of clusters
  int stage = 0;
  uint32_t phase = 0;
  int expert = 0;  // the walk

  __device__ RingProduct(const RingArguments& arguments, char* shared)
      : a(arguments.stream),
        token_tiles(arguments.token_tiles),
        up_first(arguments.up_first),
        ring(shared_address(shared)),
        memory(shared),
        full(reinterpret_cast<uint64_t*>(shared + a.depth * S::STAGE)),
        empty(full + a.depth),
        before(reinterpret_cast<int*>(empty + a.depth)),
        begins(before + a.experts + 1),
        ends(begins + a.experts),
        rank(CLUSTER == 1 ? 0 : cluster_rank()),
        first(blockIdx.x / CLUSTER),
        step(gridDim.x / CLUSTER) {}

  __device__ static int eighth(int g) { return (g & 1) * 4 + (g & 2) + g / 4; }
  __device__ __forceinline__ void advance() {
    if (++stage == a.depth) {
      stage = 0;
      phase ^= 1;
    }
  }

  // The row tile of this block in tile t of a product without a plan.
  __device__ __forceinline__ int row_tile_at(int t) const {
    if (SHARED == RingShared::TOKENS) return t / token_tiles * CLUSTER + rank;
    return t / ((token_tiles + CLUSTER - 1) / CLUSTER);
  }
  // Tiles in ascending order: those of the same weights follow one another, so that they meet in
  // the second-level cache. False where the tile has no tokens and is left out, by all roles and
  // blocks of the cluster. The first one without a plan is under way before its tokens are known.
  __device__ __forceinline__ bool tile_at(int t, StreamTile& tile) {
    if constexpr (S::GATHERS) {
      while (t >= before[expert + 1] * a.row_tiles) expert++;
      const int count = before[expert + 1] - before[expert];
      const int local = t - before[expert] * a.row_tiles;
      const int row_tile = local / count;
      const int begin = begins[expert] + (local - row_tile * count) * TOKENS;
      tile = {expert, row_tile, {begin, min(ends[expert], begin + TOKENS)}};
      return true;
    } else {
      constexpr bool APART = SHARED == RingShared::WEIGHTS;
      const int groups = APART ? (token_tiles + CLUSTER - 1) / CLUSTER : token_tiles;
      const int all = begins[0] + t % groups * TOKENS * (APART ? CLUSTER : 1);
      const int begin = all + (APART ? rank * TOKENS : 0);
      tile = {0, row_tile_at(t), {begin, min(ends[0], begin + TOKENS)}};
      return all < ends[0] || t == first;
    }
  }

  static constexpr uint16_t ALL = (1 << CLUSTER) - 1;
  __device__ __forceinline__ void bring_weights(const CUtensorMap& map, int at_expert, int row_tile,
                                                int group) const {
    constexpr bool SPLIT = SHARED == RingShared::WEIGHTS;
    const uint32_t barrier = shared_address(&full[stage]);
    barrier_arrive_expect(barrier, 2 * (S::GATHERS ? S::W_BOX : S::W_BOX + S::X_BOX));
    const int row = row_tile * BLOCK_ROWS + (SPLIT ? rank * S::BRING_ROWS : 0);
#pragma unroll
    for (int box = 0; box < 2; box++) {
      const uint32_t to =
          ring + stage * S::STAGE + box * S::W_BOX + (SPLIT ? rank * S::BRING_ROWS * 128 : 0);
      const int column = group * STREAM_GROUP + 64 * box;
      if (a.pair) {
        tensor_copy(to, &map, barrier, SPLIT ? ALL : 0, column, 0, 0, row / 16, at_expert);
      } else {
        tensor_copy(to, &map, barrier, SPLIT ? ALL : 0, column, row, at_expert);
      }
    }
  }
  __device__ __forceinline__ void bring_tokens(const CUtensorMap& map, int token, int group) const {
    constexpr bool SPLIT = SHARED == RingShared::TOKENS;
    if (SPLIT) token += rank * S::BRING_TOKENS;
#pragma unroll
    for (int box = 0; box < 2; box++) {
      const uint32_t to = ring + stage * S::STAGE + 2 * S::W_BOX + box * S::X_BOX +
                          (SPLIT ? rank * S::BRING_TOKENS * 128 : 0);
      tensor_copy(to, &map, shared_address(&full[stage]), SPLIT ? ALL : 0,
                  group * STREAM_GROUP + 64 * box, token, 0);
    }
  }
  // One thread. The weights of `early` stages of the first tile are already on their way.
  __device__ __forceinline__ void produce(const CUtensorMap& weights, const CUtensorMap& tokens,
                                          int early) {
    for (int t = first; t < tiles; t += step) {
      StreamTile tile;
      if (!tile_at(t, tile)) continue;
      for (int group = 0; group < a.groups; group++, advance()) {
        if (early-- <= 0) {
          barrier_wait(shared_address(&empty[stage]), phase ^ 1);
          bring_weights(weights, tile.expert, tile.row_tile, group);
        }
        if constexpr (!S::GATHERS) bring_tokens(tokens, tile.slots.begin, group);
      }
    }
  }

  // 64 threads: 16 bytes of every fourth token each. Places of no token keep what they have: it
  // stays in their own columns.
  __device__ __forceinline__ void gather_tokens() {
    constexpr int ROUNDS = TOKENS / 4;
    const int thread = threadIdx.x - 32 * RING_WARPS, piece = thread % 16, begin = thread / 16;
    for (int t = first; t < tiles; t += step) {
      StreamTile tile;
      if (!tile_at(t, tile)) continue;
      int from[ROUNDS];
#pragma unroll
      for (int i = 0; i < ROUNDS; i++) from[i] = tile_in_row(a, tile, begin + 4 * i);
      for (int group = 0; group < a.groups; group++, advance()) {
        barrier_wait(shared_address(&empty[stage]), phase ^ 1);
        const int column = group * STREAM_GROUP + piece * 8;
        const char* in = a.in + 2 * column;
        const uint32_t to = ring + stage * S::STAGE + 2 * S::W_BOX + piece / 8 * S::X_BOX;
#pragma unroll
        for (int i = 0; i < ROUNDS; i++) {
          const int token = begin + 4 * i;
          if (from[i] < 0) continue;
          copy16(to + token * 128 + ((piece % 8 ^ token % 8) << 4),
                 column < a.k ? in + static_cast<int64_t>(from[i]) * (2 * a.k) : a.in,
                 column < a.k);
        }
        barrier_arrive_copies(shared_address(&full[stage]));
      }
    }
  }

  // A group's products of this warp's rows and its tiles of tokens.
  __device__ __forceinline__ void multiply(int row, int part, int own, int t, int live,
                                           float (&acc)[S::OWN][4]) const {
    const char* from = memory + stage * S::STAGE;
    // Of the lane's 16-byte pieces of a row, swizzled: its number mod 8 is `own` in both operands.
    const int chunk[2] = {(t ^ own) << 4, ((4 + t) ^ own) << 4};
    uint4 w[T::PIECES];
#pragma unroll
    for (int p = 0; p < T::PIECES; p++) {
      const int box = p / 4, half = p % 2;
      w[p] = *reinterpret_cast<const uint4*>(from + box * S::W_BOX + (row + 8 * half) * 128 +
                                             chunk[p / 2 % 2]);
    }
#pragma unroll
    for (int i = 0; i < S::OWN; i += S::BESIDE) {
      if (part + S::PARTS * i >= live) break;
      uint4 b[S::BESIDE][T::B_PIECES];
      float c[S::BESIDE][4] = {};
#pragma unroll
      for (int j = 0; j < S::BESIDE; j++) {
        const int token = (part + S::PARTS * (i + j)) * 8 + own;
#pragma unroll
        for (int p = 0; p < T::B_PIECES; p++) {
          b[j][p] = *reinterpret_cast<const uint4*>(from + 2 * S::W_BOX + p / 2 * S::X_BOX +
                                                    token * 128 + chunk[p % 2]);
        }
      }
#pragma unroll
      for (int p = 0; p < T::PARTS; p++) {
#pragma unroll
        for (int j = 0; j < S::BESIDE; j++) T::product(p, c[j], w, b[j], 0, 0, t);
      }
#pragma unroll
      for (int j = 0; j < S::BESIDE; j++) {
#pragma unroll
        for (int k = 0; k < 4; k++) acc[i + j][k] = __fadd_rn(acc[i + j][k], c[j][k]);
      }
    }
  }

  // Residuals of all of a warp's sums are on their way before the first is stored.
  __device__ __forceinline__ void store(int column, const int (&slots)[S::OWN][2],
                                        float (&acc)[S::OWN][4]) const {
    const int n_halves = a.pair ? 1 : 2;
#pragma unroll
    for (int i = 0; i < S::OWN; i++) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int slot = slots[i][j % 2], at = column + j / 2 * 8;
        if (a.pair) {
          if (j < 2) {
            acc[i][j] =
                up_first ? silu_mul(acc[i][j + 2], acc[i][j]) : silu_mul(acc[i][j], acc[i][j + 2]);
          }
        } else if (a.residual && slot >= 0 && at < a.n) {
          acc[i][j] = __fadd_rn(acc[i][j], a.residual[static_cast<int64_t>(slot) * a.n + at]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < S::OWN; i++) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int slot = slots[i][j % 2], at = column + j / 2 * 8;
        if (slot < 0 || at >= a.n || j / 2 >= n_halves) continue;
        const int64_t to = static_cast<int64_t>(slot) * a.n + at;
        if (a.out_dtype == MOELA_F32) {
          reinterpret_cast<float*>(a.out)[to] = acc[i][j];
        } else {
          reinterpret_cast<uint16_t*>(a.out)[to] = static_cast<uint16_t>(bf16_pair(acc[i][j], 0));
        }
      }
    }
  }

  __device__ __forceinline__ void consume() {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = lane % 4;
    const int own = eighth(lane / 4), share = warp % S::SHARES, part = warp / S::SHARES;
    for (int at = first; at < tiles; at += step) {
      StreamTile tile;
      if (!tile_at(at, tile)) continue;
      const int live = (tile.slots.end - tile.slots.begin + 7) / 8;
      int slots[S::OWN][2];
      float acc[S::OWN][4];
#pragma unroll
      for (int i = 0; i < S::OWN; i++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
          slots[i][j] = tile_slot(a, tile, (part + S::PARTS * i) * 8 + eighth(2 * t + j));
        }
        acc[i][0] = acc[i][1] = acc[i][2] = acc[i][3] = 0;
      }
      for (int group = 0; group < a.groups; group++, advance()) {
        barrier_wait(shared_address(&full[stage]), phase);
        if (part < live) multiply(share * 16 + own, part, own, t, live, acc);
        __syncwarp();
        if constexpr (CLUSTER == 1) {
          if (lane == 0) barrier_arrive(shared_address(&empty[stage]));
        } else {
          if (lane < CLUSTER) barrier_arrive_at(shared_address(&empty[stage]), lane);
        }
      }
      if (part < live) {
        store((tile.row_tile * S::SHARES + share) * (a.pair ? 8 : 16) + own, slots, acc);
      }
    }
  }

  __device__ __forceinline__ void run(const CUtensorMap& weights, const CUtensorMap& tokens) {
    const int role = threadIdx.x / 32;
    if (threadIdx.x == 0) {
      for (int i = 0; i < a.depth; i++) {
        barrier_init(shared_address(&full[i]), S::GATHERS ? 1 + RING_GATHER : 1);
        barrier_init(shared_address(&empty[i]), RING_WARPS * CLUSTER);
      }
      barrier_init_fence();
    }
    if constexpr (CLUSTER == 1) {
      __syncthreads();
    } else {
      cluster_sync();
    }
    const int early = S::GATHERS ? 0 : min(a.groups, a.depth);
    const bool brings = threadIdx.x == RING_THREADS - 32;
    if (brings) {
      for (; stage < early; stage++) bring_weights(weights, 0, row_tile_at(first), stage);
      stage = 0;
    }
    wait_for_previous();
    allow_next();
    for (int e = threadIdx.x; e < a.experts; e += blockDim.x) {
      const SlotRange range = slot_range(a, e);
      begins[e] = range.begin;
      ends[e] = range.end;
      before[e + 1] = (range.end - range.begin + TOKENS - 1) / TOKENS;
    }
    sum_tiles(a.experts, before);
    if (S::GATHERS) {
      tiles = before[a.experts] * a.row_tiles;
    } else if (SHARED == RingShared::TOKENS) {
      tiles = (a.row_tiles + CLUSTER - 1) / CLUSTER * token_tiles;
    } else {
      tiles = a.row_tiles * ((token_tiles + CLUSTER - 1) / CLUSTER);
    }
    if (role < RING_WARPS) {
      consume();
    } else if (brings) {
      produce(weights, tokens, early);
    } else if (S::GATHERS && role < RING_WARPS + RING_GATHER / 32) {
      gather_tokens();
    }
    if constexpr (CLUSTER > 1) {
      // Neighbours may still send here, and arrive at barriers.
      __syncwarp();
      cluster_sync();
    }
  }
};
#endif

}  // namespace moela::cuda
