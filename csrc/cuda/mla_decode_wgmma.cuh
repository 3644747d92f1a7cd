// The parts of mla_decode_wgmma.cu: what a block's warpgroups share, how rows become items, and how
// pages reach shared memory. Included there alone.
#pragma once

#include "cuda/barrier.cuh"
#include "cuda/cache_read.cuh"
#include "cuda/mla_decode.cuh"
#include "cuda/mla_weight.cuh"
#include "cuda/ring.cuh"
#include "cuda/wgmma_mma.cuh"

namespace moela::cuda {

namespace {

constexpr int GROUP = 128;  // threads of a warpgroup
constexpr int THREADS = 3 * GROUP;
constexpr int R = MLA_FAST_R, DR = MLA_FAST_DR, WIDTH = R + DR;
constexpr int HEADS = MLA_WIDE_TILE;
[[maybe_unused]] constexpr int KEYS = MOELA_PAGE_TOKENS;
constexpr int BLOCKS = WIDTH / 64;  // of 64 columns
constexpr int BLOCK = 64 * 128;     // bytes of such a block of 64 rows
constexpr int STAGES = 2;
constexpr int PARTS = 3;  // of a page: blocks of columns that are waited for one after another
constexpr int PART = BLOCKS / PARTS;
constexpr int PLAN_ROWS = 128;
constexpr int MERGE_THREADS = 128;  // four columns each
[[maybe_unused]] constexpr float LOG2E = 1.44269504088896341f;

struct Shared {
  alignas(1024) char q[BLOCKS * BLOCK];
  alignas(1024) char pages[STAGES][BLOCKS * BLOCK];
  alignas(1024) char weights[BLOCK];
  float factors[HEADS];
  float sums[HEADS];
  uint64_t full[STAGES][PARTS], empty[STAGES];
  int pages_each;  // of an item, where rows share the device evenly
  // The plan: rows of the chunk at hand, and items before each.
  int keys[PLAN_ROWS], page[PLAN_ROWS], slot[PLAN_ROWS];
  uint16_t first[PLAN_ROWS + 1];
  uint8_t pool[PLAN_ROWS];
};
static_assert(sizeof(Shared) <= 232448, "");

// Pages of a row for a tile of heads.
struct Item {
  int row, keys, page, pool, slot, begin, end, head;
};

// Of each row, for the merge: its splits and its first slot.
struct RowSlots {
  int splits, slot;
};
[[maybe_unused]] __device__ __forceinline__ RowSlots* row_slots(const MlaDecodeArgs& a) {
  return reinterpret_cast<RowSlots*>(a.scratch + a.slots.rows_offset);
}
[[maybe_unused]] __device__ __forceinline__ float* slot_at(const MlaDecodeArgs& a, int slot,
                                                           int tile, int tiles) {
  return reinterpret_cast<float*>(a.scratch + a.slots.slots_offset) +
         (int64_t(slot) * tiles + tile) * a.slots.slot_floats;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int ID>
__device__ __forceinline__ void sync_computing() {
  named_sync<ID, 2 * GROUP>();
}

// One warp plans rows [begin, end). Loads of all rows are on their way at once.
__device__ __noinline__ void plan_rows(const MlaDecodeArgs& a, int begin, int end, int n_rows,
                                       int tiles, int& slots, Shared& s) {
  constexpr int EACH = PLAN_ROWS / 32;
  const int lane = threadIdx.x % 32;
  const bool even = a.splits.parts == 0;
  int keys[EACH], segment[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int row = begin + 32 * i + lane;
    keys[i] = row < end ? a.step.positions[row] + 1 : 0;
    segment[i] = row < end ? a.step.row_segment[row] : 0;
  }
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    if (begin + 32 * i + lane >= end) continue;
    s.keys[32 * i + lane] = keys[i];
    s.page[32 * i + lane] = a.step.segments[segment[i]].page;
    s.pool[32 * i + lane] = a.step.segments[segment[i]].pool;
  }
  if (begin == 0 && even) {
    int total = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) total += (keys[i] + KEYS - 1) / KEYS;
    for (int row = PLAN_ROWS + lane; row < n_rows; row += 32) {
      total += a.step.positions[row] / KEYS + 1;
    }
    total = __reduce_add_sync(~0u, total);
    if (lane == 0) s.pages_each = (total * tiles + gridDim.x - 1) / gridDim.x;
    __syncwarp();
  }
  int items = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int row = begin + 32 * i + lane;
    int splits = 0;
    if (row < end) {
      const int length = even ? s.pages_each * KEYS : mla_split_keys(a.splits, keys[i]);
      splits = (keys[i] + length - 1) / length;
    }
    int sum = splits > 1 ? splits : 0;
    const int own = sum;
#pragma unroll
    for (int j = 1; j < 32; j *= 2) {
      const int other = __shfl_up_sync(~0u, sum, j);
      if (lane >= j) sum += other;
    }
    const int slot = slots + sum - own;
    slots += __shfl_sync(~0u, sum, 31);
    // No room: the row is one split.
    if (slot + own > a.slots.capacity && splits > 1) splits = 1;
    int count = splits;
#pragma unroll
    for (int j = 1; j < 32; j *= 2) {
      const int other = __shfl_up_sync(~0u, count, j);
      if (lane >= j) count += other;
    }
    if (row < end) {
      s.first[row - begin] = items + count - splits;
      s.slot[row - begin] = splits > 1 ? slot : -1;
      if (blockIdx.x == 0 && a.slots.capacity > 0) row_slots(a)[row] = {splits, slot};
    }
    items += __shfl_sync(~0u, count, 31);
  }
  if (lane == 0) s.first[end - begin] = items;
}

__device__ __forceinline__ Item item_at(const MlaDecodeArgs& a, const Shared& s, int index,
                                        int tiles, int row_begin, int rows) {
  const int item = index / tiles;
  int low = 0, high = rows - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (s.first[middle] <= item)
      low = middle;
    else
      high = middle - 1;
  }
  const int keys = s.keys[low], slot = s.slot[low];
  const int pages = (keys + KEYS - 1) / KEYS;
  const int each = slot < 0              ? pages
                   : a.splits.parts == 0 ? s.pages_each
                                         : mla_split_keys(a.splits, keys) / KEYS;
  const int split = item - s.first[low];
  return {row_begin + low,
          keys,
          s.page[low],
          s.pool[low],
          slot < 0 ? -1 : slot + split,
          split * each,
          min(pages, (split + 1) * each),
          index % tiles * HEADS};
}

using Ring = RingPlace<STAGES>;

// A page's rows of a type with scales as bf16, by the copying warpgroup.
template <int DTYPE>
__device__ __forceinline__ void convert_page(char* to, const char* from, int rows) {
  constexpr int ROW_BYTES = DTYPE == MOELA_INT6 ? WIDTH / 4 * 3 : WIDTH;
  static_assert(R % 64 == 0 && DR % 32 == 0, "64 elements are of one part");
  const int piece = threadIdx.x % 8, first = threadIdx.x % GROUP / 8;
  const uint8_t* codes = reinterpret_cast<const uint8_t*>(from + KEYS * ROW_BYTES);
#pragma unroll 1
  for (int i = 0; i < 4; i++) {
    const int row = 16 * i + first;
    char* own = to + row * 128 + ((piece ^ (row % 8)) << 4);
    if (row >= rows) {
#pragma unroll
      for (int b = 0; b < BLOCKS; b++) *reinterpret_cast<uint4*>(own + b * BLOCK) = {0, 0, 0, 0};
      continue;
    }
    const float scale = cache_scale(codes[2 * row]), key_scale = cache_scale(codes[2 * row + 1]);
    CacheEight<DTYPE> eights[BLOCKS];
#pragma unroll
    for (int b = 0; b < BLOCKS; b++) {
      eights[b].load(from + row * ROW_BYTES, 64 * b + 8 * piece, cache_part(DTYPE, 64 * b, R, DR),
                     R, DR);
    }
#pragma unroll
    for (int b = 0; b < BLOCKS; b++) {
      const CachePart part = cache_part(DTYPE, 64 * b, R, DR);
      *reinterpret_cast<uint4*>(own + b * BLOCK) = cache_bf16<DTYPE>(
          eights[b], part == CachePart::KEY ? key_scale : scale, 64 * b + 8 * piece, part, R, DR);
    }
  }
}

__device__ __forceinline__ void copy_item(const MlaDecodeArgs& a, const Item& item, Ring& ring,
                                          Shared& s) {
  const PagePool& pool = a.step.pools[item.pool];
  const int dtype = pool.dtype;
  if (dtype == MOELA_F32) return;
  const char* base = pool.base + a.layer * pool.layer_bytes;
  const int64_t page_bytes = pool.page_bytes;
  const int* pages = a.step.pages + item.page;
  int page = pages[item.begin];
  for (int i = item.begin; i < item.end; i++) {
    const char* from = base + page * page_bytes;
    if (i + 1 < item.end) page = pages[i + 1];
    const int rows = min(KEYS, item.keys - i * KEYS);
    uint64_t* full = s.full[ring.stage];
    barrier_wait(shared_address(&s.empty[ring.stage]), ring.phase ^ 1);
    if (dtype == MOELA_BF16) {
      const int piece = threadIdx.x % 8, first = threadIdx.x % GROUP / 8;
      const uint32_t to =
          shared_address(s.pages[ring.stage]) + first * 128 + ((piece ^ (first % 8)) << 4);
      from += first * (2 * WIDTH) + piece * 16;
#pragma unroll
      for (int b = 0; b < BLOCKS; b++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
          copy16(to + b * BLOCK + j * 16 * 128, from + j * 16 * (2 * WIDTH) + b * 128,
                 16 * j + first < rows);
        }
        if (b % PART == PART - 1) barrier_arrive_copies(shared_address(&full[b / PART]));
      }
    } else {
      if (dtype == MOELA_FP8)
        convert_page<MOELA_FP8>(s.pages[ring.stage], from, rows);
      else if (dtype == MOELA_INT8)
        convert_page<MOELA_INT8>(s.pages[ring.stage], from, rows);
      else
        convert_page<MOELA_INT6>(s.pages[ring.stage], from, rows);
      fence_async_proxy();
      for (int part = 0; part < PARTS; part++) barrier_arrive(shared_address(&full[part]));
    }
    ring.next();
  }
}
#endif

// Splits of a row in ascending order, a head at a time. Grid: (groups of heads; rows).
__global__ void __launch_bounds__(MERGE_THREADS) merge(const __grid_constant__ MlaDecodeArgs a) {
#if __CUDA_ARCH__ >= 900
  constexpr int ROOM = 2 * MERGE_THREADS, AHEAD = 16;
  __shared__ float2 room[ROOM];  // of each split: its factor, its sum of weights
  __shared__ float maxima[MERGE_THREADS / 32];
  wait_for_previous();
  const int n_rows = a.step.counts->n_absorbed, tiles = (a.heads + HEADS - 1) / HEADS;
  const int thread = threadIdx.x, column = 4 * thread;
  const int64_t step = tiles * a.slots.slot_floats;
  for (int row = blockIdx.y; row < n_rows; row += gridDim.y) {
    const RowSlots own = row_slots(a)[row];
    if (own.splits < 2) continue;
    for (int head = blockIdx.x; head < a.heads; head += gridDim.x) {
      const float* slot = slot_at(a, own.slot, head / HEADS, tiles);
      const float* states = slot + HEADS * R + 2 * (head % HEADS);
      slot += head % HEADS * R + column;
      float most = -INFINITY;
      for (int i = thread; i < own.splits; i += MERGE_THREADS) {
        most = fmaxf(most, __ldcg(states + i * step));
      }
#pragma unroll
      for (int j = 16; j > 0; j /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, j));
      __syncthreads();  // the head before is done
      if (thread % 32 == 0) maxima[thread / 32] = most;
      __syncthreads();
      most = fmaxf(fmaxf(maxima[0], maxima[1]), fmaxf(maxima[2], maxima[3]));
      float sum = 0;
      float4 o = {0, 0, 0, 0};
      for (int first = 0; first < own.splits; first += ROOM) {
        const int count = min(ROOM, own.splits - first);
        if (first > 0) __syncthreads();
        for (int i = thread; i < count; i += MERGE_THREADS) {
          const float2 state = __ldcg(reinterpret_cast<const float2*>(states + (first + i) * step));
          room[i] = {exp2f(state.x - most), state.y};
        }
        __syncthreads();
        for (int i = 0; i < count; i += AHEAD) {
          float4 v[AHEAD];
#pragma unroll
          for (int j = 0; j < AHEAD; j++) {
            v[j] = {0, 0, 0, 0};
            if (i + j < count) {
              v[j] = __ldcg(reinterpret_cast<const float4*>(slot + (first + i + j) * step));
            }
          }
#pragma unroll
          for (int j = 0; j < AHEAD; j++) {
            if (i + j >= count) continue;
            const float2 state = room[i + j];
            sum = fmaf(state.y, state.x, sum);
            o.x = fmaf(v[j].x, state.x, o.x);
            o.y = fmaf(v[j].y, state.x, o.y);
            o.z = fmaf(v[j].z, state.x, o.z);
            o.w = fmaf(v[j].w, state.x, o.w);
          }
        }
      }
      const float inverse = 1 / sum;
      tensor_store_four(a.out, (int64_t(row) * a.heads + head) * R + column,
                        {o.x * inverse, o.y * inverse, o.z * inverse, o.w * inverse});
    }
  }
#endif
}

}  // namespace

}  // namespace moela::cuda
