// How rows become items of the kernels of tiles of 16 heads (mla_decode_cluster.cu and
// mla_decode_rows.cu), and how an item's keys reach shared memory.
#pragma once

#include "cuda/barrier.cuh"
#include "cuda/mla_decode_tile.cuh"
#include "cuda/ring.cuh"

namespace moela::cuda {

namespace {

constexpr int PLAN_ROWS = 512;

// The rows of the chunk at hand.
struct Plan {
  int group;                 // splits of an item
  int first[PLAN_ROWS + 1];  // items before each row
  int keys[PLAN_ROWS], page[PLAN_ROWS], pool[PLAN_ROWS], slot[PLAN_ROWS];
};

// Some splits of a row, for a tile of heads.
struct Item {
  int row, keys, page, pool, slot, parts, length, begin, end, head;
};

// Tiles of keys on their way and those there.
template <int STAGES>
struct KeyRing {
  alignas(128) char stages[STAGES][STAGE];
  alignas(16) uint8_t scales[STAGES][TILE][2];
  uint64_t full[STAGES], empty[STAGES];

  // By one thread, which makes it known. `copying`: warps that fill it.
  __device__ __forceinline__ void init(int copying) {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(shared_address(&full[i]), copying);
      barrier_init(shared_address(&empty[i]), WARPS);
    }
  }
};

#if __CUDA_ARCH__ >= 900
// Rows [begin, end) as the step has them, by `threads` threads; plan_rows() is for after a barrier.
__device__ __forceinline__ void load_rows(const MlaDecodeArgs& a, int begin, int end, int thread,
                                          int threads, Plan& s) {
  for (int row = begin + thread; row < end; row += threads) {
    const int position = a.step.positions[row];
    const moela_segment& segment = a.step.segments[a.step.row_segment[row]];
    s.keys[row - begin] = position + 1;
    s.page[row - begin] = segment.page;
    s.pool[row - begin] = segment.pool;
  }
}

// One warp plans these rows for `units` that take items one after another: where rows' items begin.
// Slots are numbered from `slots`.
__device__ __noinline__ void plan_rows(const MlaDecodeArgs& a, int begin, int end, int n_rows,
                                       int tiles, int units, int& slots, Plan& s) {
  const int lane = threadIdx.x % 32;
  if (begin == 0) {
    int total = 0;
    for (int row = lane; row < n_rows; row += 32) {
      total += mla_split_count(a.splits, row < end ? s.keys[row] : a.step.positions[row] + 1);
    }
    total = __reduce_add_sync(~0u, total);
    if (lane == 0) s.group = (total * tiles + units - 1) / units;
  }
  __syncwarp();
  const int group = s.group;
  int items = 0;
  for (int base = begin; base < end; base += 32) {
    const int row = base + lane;
    const int keys = row < end ? s.keys[row - begin] : 0;
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
      s.slot[row - begin] = own_slots ? slot : -1;
    }
    items += __shfl_sync(~0u, sum, 31);
  }
  if (lane == 0) s.first[end - begin] = items;
}

__device__ __forceinline__ Item item_at(const MlaDecodeArgs& a, const Plan& s, int index, int tiles,
                                        int row_begin, int rows) {
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

// PARTS warps copy the tiles of a share of an item's keys: a row's copy takes its time to start.
template <int PARTS, int STAGES>
__device__ __forceinline__ void copy_share(const MlaDecodeArgs& a, const Item& item,
                                           const MlaShare& share, int part, RingPlace<STAGES>& ring,
                                           KeyRing<STAGES>& keys) {
  if (share.begin >= share.end) return;
  const int lane = threadIdx.x % 32;
  const int own = part * (TILE / PARTS) + lane;
  const PagePool& pool = a.step.pools[item.pool];
  const int dtype = pool.dtype;
  const int row_bytes = static_cast<int>(pool.row_bytes);
  const int tile = dtype == MOELA_F32 ? TILE_F32 : TILE;
  const bool scaled = dtype != MOELA_F32 && dtype != MOELA_BF16;
  const int stride = dtype == MOELA_F32 ? ROW_F32 : ROW;
  const char* base = pool.base + a.layer * pool.layer_bytes;
  const int first_page = share.begin / MOELA_PAGE_TOKENS;
  // A share has at most most / 8 = 256 keys: its pages fit the lanes.
  const int mine = first_page + lane <= (share.end - 1) / MOELA_PAGE_TOKENS
                       ? a.step.pages[item.page + first_page + lane]
                       : 0;
  for (int key = share.begin; key < share.end; key += tile) {
    const int page = __shfl_sync(~0u, mine, key / MOELA_PAGE_TOKENS - first_page);
    const int row = key % MOELA_PAGE_TOKENS, rows = min(tile, share.end - key);
    const char* from = base + page * pool.page_bytes;
    const uint32_t full = shared_address(&keys.full[ring.stage]);
    const uint32_t to = shared_address(keys.stages[ring.stage]);
    barrier_wait(shared_address(&keys.empty[ring.stage]), ring.phase ^ 1);
    __syncwarp();  // or the next phase could end before a lane has seen this one's
    // Each warp arrives, so that none falls behind by a round.
    const int own_rows = min(max(rows - part * (TILE / PARTS), 0), TILE / PARTS);
    if (lane == 0 && !scaled) barrier_arrive_expect(full, own_rows * row_bytes);
    if (lane == 0 && scaled) {
      barrier_arrive_expect(full, part == 0 ? rows * row_bytes + 2 * TILE : 0);
      if (part == 0) {
        // As they are, at the stage's end: they become bf16 in place.
        bulk_load(to + STAGE - TILE * row_bytes, from + row * row_bytes, rows * row_bytes, full);
        bulk_load(shared_address(keys.scales[ring.stage]),
                  from + MOELA_PAGE_TOKENS * row_bytes + 2 * row, 2 * TILE, full);
      }
    }
    __syncwarp();
    if (!scaled && lane < own_rows) {
      bulk_load(to + own * stride, from + (row + own) * row_bytes, row_bytes, full);
    }
    ring.next();
  }
}
#endif  // __CUDA_ARCH__ >= 900

}  // namespace

}  // namespace moela::cuda
