// The parts of mla_decode_cluster.cu: what a cluster's blocks share and say to each other, how rows
// become items, and how keys and queries reach their places. Included there alone.
#pragma once

#include "cuda/barrier.cuh"
#include "cuda/cache_tile.cuh"
#include "cuda/mla_decode.cuh"
#include "cuda/ring.cuh"

namespace moela::cuda {

namespace {

constexpr int CLUSTER = MLA_SHARES;
constexpr int WARPS = 8;  // that compute
constexpr int COMPUTING = 32 * WARPS;
constexpr int THREADS = COMPUTING + 32;
constexpr int R = MLA_FAST_R, DR = MLA_FAST_DR, WIDTH = R + DR;
constexpr int HEADS = MLA_HEAD_TILE;
constexpr int SLICE = R / CLUSTER;                   // columns that a block merges
constexpr int TILE = MLA_SHARE_TILE, TILE_F32 = 16;  // keys
constexpr int STAGES = 3;
constexpr int ROW = 2 * WIDTH + 16;  // bytes of a bf16 row: 16 more, against bank conflicts
constexpr int ROW_F32 = 4 * WIDTH + 16;
constexpr int STAGE = TILE * ROW;
constexpr int PLAN_ROWS = 512;
constexpr int S_STRIDE = 40, P_STRIDE = 40;  // against bank conflicts
static_assert(TILE_F32 * ROW_F32 <= STAGE && R == 64 * WARPS && WIDTH % (4 * 16) == 0, "");
static_assert(COMPUTING == 8 * TILE, "eight threads a row");

struct Shared {
  alignas(128) char stages[STAGES][STAGE];
  alignas(
      128) float sent[CLUSTER][HEADS][SLICE];  // by target block; columns swapped, see column_at
  alignas(128) float received[CLUSTER][HEADS][SLICE];  // by source block
  alignas(16) float own_states[HEADS][2];              // maxima and sums
  float states[CLUSTER][HEADS][2];
  float scores[4][HEADS][S_STRIDE];
  uint16_t weights[HEADS][P_STRIDE];
  uint8_t scales[STAGES][TILE][2];
  float factors[HEADS];
  uint64_t full[STAGES], empty[STAGES];
  uint64_t arrived;  // results of all blocks for a split
  uint64_t taken;    // all blocks have read what they received
  int last;
  // The plan: rows of the chunk at hand.
  int group;                 // splits of an item
  int first[PLAN_ROWS + 1];  // items before each row
  int keys[PLAN_ROWS], page[PLAN_ROWS], pool[PLAN_ROWS], slot[PLAN_ROWS];
};

// Some splits of a row, for a tile of heads.
struct Item {
  int row, keys, page, pool, slot, parts, length, begin, end, head;
};

#if __CUDA_ARCH__ >= 900
// Where a slice has a head's column: eights of columns are swapped against bank conflicts.
__device__ __forceinline__ int column_at(int head, int column) { return column ^ (head % 8 * 8); }
// Of the warps that compute.
__device__ __forceinline__ void sync_computing() { named_sync<1, COMPUTING>(); }

// A result of attention over some keys: the sum of weights relative to 2^max, and of weights times
// latents.
struct Result {
  float max, sum, o[4];

  __device__ __forceinline__ void add(float m, float l, const float4& v) {
    const float most = fmaxf(max, m);
    const float mine = power2(max - most), other = power2(m - most);
    max = most;
    add(mine, l, v, other);
  }
  // With factors that are known.
  __device__ __forceinline__ void add(float mine, float l, const float4& v, float other) {
    sum = fmaf(l, other, sum * mine);
    o[0] = fmaf(v.x, other, o[0] * mine);
    o[1] = fmaf(v.y, other, o[1] * mine);
    o[2] = fmaf(v.z, other, o[2] * mine);
    o[3] = fmaf(v.w, other, o[3] * mine);
  }
};

// One warp plans the rows [begin, end): where their items begin. Slots are numbered from `slots`.
__device__ __noinline__ void plan_rows(const MlaDecodeArgs& a, int begin, int end, int n_rows,
                                       int tiles, int clusters, int& slots, Shared& s) {
  const int lane = threadIdx.x % 32;
  const auto keys_of = [&](int row, int& page, int& pool) {
    if (row >= n_rows) return 0;
    const int position = a.step.positions[row];
    const moela_segment& segment = a.step.segments[a.step.row_segment[row]];
    page = segment.page;
    pool = segment.pool;
    return position + 1;
  };
  int page = 0, pool = 0;
  if (begin == 0) {
    int total = 0;
    for (int row = lane; row < n_rows; row += 32) {
      total += mla_split_count(a.splits, a.step.positions[row] + 1);
    }
    total = __reduce_add_sync(~0u, total);
    if (lane == 0) s.group = (total * tiles + clusters - 1) / clusters;
  }
  __syncwarp();
  const int group = s.group;
  int items = 0;
  for (int base = begin; base < end; base += 32) {
    const int row = base + lane;
    const int keys = row < end ? keys_of(row, page, pool) : 0;
    const int splits = keys > 0 ? mla_split_count(a.splits, keys) : 0;
    int own_slots = splits > group ? splits : 0, slot = own_slots;
#pragma unroll
    for (int i = 1; i < 32; i *= 2) {
      const int other = __shfl_up_sync(~0u, slot, i);
      if (lane >= i) slot += other;
    }
    const int new_slots = __shfl_sync(~0u, slot, 31);
    slot += slots - own_slots;
    slots += new_slots;
    if (slot + own_slots > a.slots.capacity) own_slots = 0;
    const int own = splits == 0 ? 0 : own_slots ? (splits + group - 1) / group : 1;
    int sum = own;
#pragma unroll
    for (int i = 1; i < 32; i *= 2) {
      const int other = __shfl_up_sync(~0u, sum, i);
      if (lane >= i) sum += other;
    }
    if (row < end) {
      s.first[row - begin] = items + sum - own;
      s.keys[row - begin] = keys;
      s.page[row - begin] = page;
      s.pool[row - begin] = pool;
      s.slot[row - begin] = own_slots ? slot : -1;
    }
    items += __shfl_sync(~0u, sum, 31);
  }
  if (lane == 0) s.first[end - begin] = items;
}

__device__ __forceinline__ Item item_at(const MlaDecodeArgs& a, const Shared& s, int index,
                                        int tiles, int row_begin, int rows) {
  const int item = index / tiles;
  int low = 0, high = rows - 1;  // the last row whose first item is at most `item`
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (s.first[middle] <= item)
      low = middle;
    else
      high = middle - 1;
  }
  Item at;
  at.row = row_begin + low;
  at.keys = s.keys[low];
  at.page = s.page[low];
  at.pool = s.pool[low];
  at.slot = s.slot[low];
  at.length = mla_split_keys(a.splits, at.keys);
  at.parts = s.first[low + 1] - s.first[low];
  at.begin = at.slot < 0 ? 0 : (item - s.first[low]) * s.group;
  const int splits = (at.keys + at.length - 1) / at.length;
  at.end = at.slot < 0 ? splits : min(splits, at.begin + s.group);
  at.head = index % tiles * HEADS;
  return at;
}

// An item of a row that is alone in its step. It needs no plan, which takes its time.
__device__ __forceinline__ Item item_alone(const MlaDecodeArgs& a, int keys, int page, int pool,
                                           int index, int tiles, int clusters, int& items) {
  Item at{};
  at.keys = keys;
  at.page = page;
  at.pool = pool;
  at.length = mla_split_keys(a.splits, keys);
  const int splits = (keys + at.length - 1) / at.length;
  int group = (splits * tiles + clusters - 1) / clusters;
  if (splits > a.slots.capacity) group = splits;
  at.slot = splits > group ? 0 : -1;
  at.parts = (splits + group - 1) / group;
  at.begin = index / tiles * group;
  at.end = min(splits, at.begin + group);
  at.head = index % tiles * HEADS;
  items = at.parts * tiles;
  return at;
}

using Ring = RingPlace<STAGES>;

// The copying warp: rows of one item.
__device__ __forceinline__ void copy_item(const MlaDecodeArgs& a, const Item& item, int rank,
                                          Ring& ring, Shared& s) {
  const int lane = threadIdx.x % 32;
  const PagePool& pool = a.step.pools[item.pool];
  const int dtype = pool.dtype;
  const int row_bytes = static_cast<int>(pool.row_bytes);
  const int tile = dtype == MOELA_F32 ? TILE_F32 : TILE;
  const bool scaled = dtype != MOELA_F32 && dtype != MOELA_BF16;
  const int stride = dtype == MOELA_F32 ? ROW_F32 : ROW;
  const char* base = pool.base + a.layer * pool.layer_bytes;
  for (int split = item.begin; split < item.end; split++) {
    const MlaShare share = mla_share(item.keys, item.length, split, rank);
    if (share.begin >= share.end) continue;
    const int first_page = share.begin / MOELA_PAGE_TOKENS;
    // A share has at most most / 8 = 256 keys: its pages fit the lanes.
    const int mine = first_page + lane <= (share.end - 1) / MOELA_PAGE_TOKENS
                         ? a.step.pages[item.page + first_page + lane]
                         : 0;
    for (int key = share.begin; key < share.end; key += tile) {
      const int page = __shfl_sync(~0u, mine, key / MOELA_PAGE_TOKENS - first_page);
      const int row = key % MOELA_PAGE_TOKENS, rows = min(tile, share.end - key);
      const char* from = base + page * pool.page_bytes;
      const uint32_t full = shared_address(&s.full[ring.stage]);
      const uint32_t to = shared_address(s.stages[ring.stage]);
      barrier_wait(shared_address(&s.empty[ring.stage]), ring.phase ^ 1);
      if (lane == 0) {
        barrier_arrive_expect(full, rows * row_bytes + (scaled ? 2 * TILE : 0));
        if (scaled) {
          // As they are, at the stage's end: they become bf16 in place.
          bulk_load(to + STAGE - TILE * row_bytes, from + row * row_bytes, rows * row_bytes, full);
          bulk_load(shared_address(s.scales[ring.stage]),
                    from + MOELA_PAGE_TOKENS * row_bytes + 2 * row, 2 * TILE, full);
        }
      }
      __syncwarp();
      if (!scaled && lane < rows) {
        bulk_load(to + lane * stride, from + (row + lane) * row_bytes, row_bytes, full);
      }
      ring.next();
    }
  }
}

__device__ __forceinline__ float2 query_pair(const Tensor& q, int64_t at, bool valid) {
  if (!valid) return {0.f, 0.f};
  if (q.dtype == MOELA_F32)
    return *reinterpret_cast<const float2*>(static_cast<const float*>(q.data) + at);
  const uint32_t pair =
      *reinterpret_cast<const uint32_t*>(static_cast<const uint16_t*>(q.data) + at);
  return {bf16_value(pair & 0xffff), __uint_as_float(pair & 0xffff0000u)};
}
// A fragments of a warp's dims, from q[at] on: heads g and g + 8, where they are. All loads are on
// their way before the first is used.
__device__ __forceinline__ void load_query(const Tensor& q, int64_t at, bool low, bool high,
                                           uint32_t (&out)[9][4]) {
  const int64_t first = low ? at : 0, second = high ? at + 8 * WIDTH : 0;
  if (q.dtype == MOELA_F32) {
    const float* from[2] = {static_cast<const float*>(q.data) + first,
                            static_cast<const float*>(q.data) + second};
    float2 v[9][4];
#pragma unroll
    for (int i = 0; i < 36; i++) {
      v[i / 4][i % 4] = *reinterpret_cast<const float2*>(from[i % 2] + i / 4 * 16 + i % 4 / 2 * 8);
    }
#pragma unroll
    for (int i = 0; i < 36; i++) {
      out[i / 4][i % 4] =
          (i % 2 ? high : low) ? bf16_pair(v[i / 4][i % 4].x, v[i / 4][i % 4].y) : 0;
    }
  } else {
    const uint16_t* from[2] = {static_cast<const uint16_t*>(q.data) + first,
                               static_cast<const uint16_t*>(q.data) + second};
#pragma unroll
    for (int i = 0; i < 36; i++) {
      out[i / 4][i % 4] =
          *reinterpret_cast<const uint32_t*>(from[i % 2] + i / 4 * 16 + i % 4 / 2 * 8);
    }
#pragma unroll
    for (int i = 0; i < 36; i++) {
      if (!(i % 2 ? high : low)) out[i / 4][i % 4] = 0;
    }
  }
}
#endif  // __CUDA_ARCH__ >= 900

}  // namespace

}  // namespace moela::cuda
