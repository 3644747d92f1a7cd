// mla_decode on Hopper for r = 512, dr = 64 and many heads: tiles of 64 heads on wgmma.
//
// A block takes some pages of a row for 64 heads. A warpgroup copies pages to shared memory, two of
// them in flight, in rows of 128 bytes as wgmma reads them. Another makes S [64, 64] = q K^T and the
// running softmax, and hands P over in shared memory; then both add P V, 256 columns of O [64, 512]
// each. Results of a row's splits go to slots in memory and are merged in ascending order by a second
// launch. The order of summation is fixed by where splits are cut: see mla_decode_plan.h, or evenly
// over the blocks where rows may depend on their neighbours.
#include "cuda/barrier.cuh"
#include "cuda/cache_read.cuh"
#include "cuda/mla_decode.cuh"
#include "cuda/mla_weight.cuh"
#include "cuda/wgmma_mma.cuh"

namespace moela::cuda {

#if defined(MOELA_TRACE)
__device__ long long mla_wide_trace[132][64];
// Of warpgroup 0 (first half) and 2 (second).
#define TRACE()                                                                       \
  do {                                                                                \
    if (threadIdx.x % 256 == 0) {                                                     \
      const long long now = clock64();                                                \
      const int i = s.traces[threadIdx.x / 256]++;                                    \
      if (i < 32) mla_wide_trace[blockIdx.x][threadIdx.x / 256 * 32 + i] = now;       \
    }                                                                                 \
  } while (0)
#else
#define TRACE()
#endif

namespace {

constexpr int GROUP = 128;  // threads of a warpgroup
constexpr int THREADS = 3 * GROUP;
constexpr int R = MLA_FAST_R, DR = MLA_FAST_DR, WIDTH = R + DR;
constexpr int HEADS = MLA_WIDE_TILE;
[[maybe_unused]] constexpr int KEYS = MOELA_PAGE_TOKENS;
constexpr int BLOCKS = WIDTH / 64;  // of 64 columns
constexpr int BLOCK = 64 * 128;     // bytes of such a block of 64 rows
constexpr int STAGES = 2;
constexpr int PLAN_ROWS = 128;
[[maybe_unused]] constexpr float LOG2E = 1.44269504088896341f;

struct Shared {
  alignas(1024) char q[BLOCKS * BLOCK];
  alignas(1024) char pages[STAGES][BLOCKS * BLOCK];
  alignas(1024) char weights[BLOCK];
  float factors[HEADS];
  float sums[HEADS];
  uint64_t full[STAGES], empty[STAGES];
  int pages_each;  // of an item, where rows share the device evenly
  // The plan: rows of the chunk at hand, and items before each.
  int keys[PLAN_ROWS], page[PLAN_ROWS], slot[PLAN_ROWS];
  uint16_t first[PLAN_ROWS + 1];
  uint8_t pool[PLAN_ROWS];
#if defined(MOELA_TRACE)
  int traces[2];
#endif
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
[[maybe_unused]] __device__ __forceinline__ float* slot_at(const MlaDecodeArgs& a, int slot, int tile, int tiles) {
  return reinterpret_cast<float*>(a.scratch + a.slots.slots_offset) +
         (int64_t(slot) * tiles + tile) * a.slots.slot_floats;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// d [64, 256] += a [64, 16] b [16, 256]: b is read along its rows.
__device__ __forceinline__ void wgmma_values(float (&d)[128], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" MOELA_S256
               "}, %128, %129, 1, 1, 1, 0, 1;\n"
               : MOELA_D256(d)
               : "l"(a), "l"(b));
}
// Rows of 64 keys in blocks of 64 columns; the product runs along the rows.
__device__ __forceinline__ uint64_t values_descriptor(uint32_t address) {
  return uint64_t{(address & 0x3FFFF) >> 4} | uint64_t{BLOCK >> 4} << 16 |
         uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

template <int N>
__device__ __forceinline__ void registers_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void registers_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int ID>
__device__ __forceinline__ void sync_computing() {
  asm volatile("bar.sync %0, 256;" ::"n"(ID) : "memory");
}
__device__ __forceinline__ void arrive_computing(int id) {
  asm volatile("bar.arrive %0, 256;" ::"r"(id) : "memory");
}
__device__ __forceinline__ float power2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// One warp plans rows [begin, end).
__device__ __noinline__ void plan_rows(const MlaDecodeArgs& a, int begin, int end, int n_rows,
                                       int tiles, int& slots, Shared& s) {
  const int lane = threadIdx.x % 32;
  const bool even = a.splits.parts == 0;
  if (begin == 0 && even) {
    int total = 0;
    for (int row = lane; row < n_rows; row += 32) total += a.step.positions[row] / KEYS + 1;
    total = __reduce_add_sync(~0u, total);
    if (lane == 0) s.pages_each = (total * tiles + gridDim.x - 1) / gridDim.x;
    __syncwarp();
  }
  int items = 0;
  for (int base = begin; base < end; base += 32) {
    const int row = base + lane;
    int keys = 0, splits = 0;
    if (row < end) {
      keys = a.step.positions[row] + 1;
      const moela_segment& segment = a.step.segments[a.step.row_segment[row]];
      s.keys[row - begin] = keys;
      s.page[row - begin] = segment.page;
      s.pool[row - begin] = segment.pool;
      const int length = even ? s.pages_each * KEYS : mla_split_keys(a.splits, keys);
      splits = (keys + length - 1) / length;
    }
    int sum = splits > 1 ? splits : 0;
    const int own = sum;
#pragma unroll
    for (int i = 1; i < 32; i *= 2) {
      const int other = __shfl_up_sync(~0u, sum, i);
      if (lane >= i) sum += other;
    }
    const int slot = slots + sum - own;
    slots += __shfl_sync(~0u, sum, 31);
    // No room: the row is one split.
    const bool room = slot + own <= a.slots.capacity;
    if (!room) splits = 1;
    int count = splits;
#pragma unroll
    for (int i = 1; i < 32; i *= 2) {
      const int other = __shfl_up_sync(~0u, count, i);
      if (lane >= i) count += other;
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
    if (s.first[middle] <= item) low = middle;
    else high = middle - 1;
  }
  const int keys = s.keys[low], slot = s.slot[low];
  const int pages = (keys + KEYS - 1) / KEYS;
  const int each = slot < 0                ? pages
                   : a.splits.parts == 0 ? s.pages_each
                                           : mla_split_keys(a.splits, keys) / KEYS;
  const int split = item - s.first[low];
  return {row_begin + low, keys, s.page[low], s.pool[low], slot < 0 ? -1 : slot + split,
          split * each, min(pages, (split + 1) * each), index % tiles * HEADS};
}

struct Ring {
  int stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// A page's rows of a type with scales as bf16, by the copying warpgroup.
template <int DTYPE>
__device__ __forceinline__ void convert_page(char* to, const char* from, int rows) {
  constexpr int ROW_BYTES = DTYPE == MOELA_INT6 ? WIDTH / 4 * 3 : WIDTH;
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
    for (int b = 0; b < BLOCKS; b++) eights[b].load(from + row * ROW_BYTES, 64 * b + 8 * piece);
#pragma unroll
    for (int b = 0; b < BLOCKS; b++) {
      *reinterpret_cast<uint4*>(own + b * BLOCK) =
          cache_bf16<DTYPE>(eights[b], b == BLOCKS - 1 ? key_scale : scale);
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
    const uint32_t full = shared_address(&s.full[ring.stage]);
    TRACE();
    barrier_wait(shared_address(&s.empty[ring.stage]), ring.phase ^ 1);
    TRACE();
    if (dtype == MOELA_BF16) {
      const int piece = threadIdx.x % 8, first = threadIdx.x % GROUP / 8;
      const uint32_t to = shared_address(s.pages[ring.stage]) + first * 128 +
                          ((piece ^ (first % 8)) << 4);
      from += first * (2 * WIDTH) + piece * 16;
#pragma unroll
      for (int b = 0; b < BLOCKS; b++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
          copy16(to + b * BLOCK + j * 16 * 128, from + j * 16 * (2 * WIDTH) + b * 128,
                 16 * j + first < rows);
        }
      }
      barrier_arrive_copies(full);
    } else {
      if (dtype == MOELA_FP8) convert_page<MOELA_FP8>(s.pages[ring.stage], from, rows);
      else if (dtype == MOELA_INT8) convert_page<MOELA_INT8>(s.pages[ring.stage], from, rows);
      else convert_page<MOELA_INT6>(s.pages[ring.stage], from, rows);
      fence_async_proxy();
      barrier_arrive(full);
    }
    ring.next();
  }
}

// Queries of 64 heads as bf16; both computing warpgroups.
__device__ __forceinline__ void load_query(const MlaDecodeArgs& a, const Item& item, Shared& s) {
  const int piece = threadIdx.x % 8, first = threadIdx.x / 8;
#pragma unroll 1
  for (int i = 0; i < 2; i++) {
    const int head = 32 * i + first;
    char* to = s.q + head * 128 + ((piece ^ (head % 8)) << 4);
    const int64_t at = (int64_t(item.row) * a.heads + item.head + head) * WIDTH + 8 * piece;
    uint2 v[2 * BLOCKS] = {};
    if (item.head + head < a.heads) {
      tensor_fours(a.q, at, v, [](int j) { return j / 2 * 64 + j % 2 * 4; });
    }
#pragma unroll
    for (int b = 0; b < BLOCKS; b++) {
      *reinterpret_cast<uint4*>(to + b * BLOCK) = {v[2 * b].x, v[2 * b].y, v[2 * b + 1].x,
                                                     v[2 * b + 1].y};
    }
  }
  fence_async_proxy();
  sync_computing<1>();
}

// Two columns of a head's result.
__device__ __forceinline__ void store_pair(const MlaDecodeArgs& a, const Item& item, float* slot,
                                           int head, int column, float x, float y, float inverse) {
  if (slot) {
    __stcg(reinterpret_cast<float2*>(slot + head * R + column), float2{x, y});
    return;
  }
  if (item.head + head >= a.heads) return;
  const int64_t to = (int64_t(item.row) * a.heads + item.head + head) * R + column;
  if (a.out.dtype == MOELA_F32) {
    *reinterpret_cast<float2*>(static_cast<float*>(a.out.data) + to) = {x * inverse, y * inverse};
  } else {
    *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(a.out.data) + to) =
        bf16_pair(x * inverse, y * inverse);
  }
}

// F32 caches, f32 arithmetic: a warp eight heads, a key at a time. Rare, so it is only short.
__device__ __noinline__ void attend_f32(const MlaDecodeArgs& a, const Item& item, float* slot) {
  const PagePool& pool = a.step.pools[item.pool];
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < HEADS / 8; i++) {
    const int head = threadIdx.x / 32 * (HEADS / 8) + i;
    if (item.head + head >= a.heads) return;
    const int64_t at = (int64_t(item.row) * a.heads + item.head + head) * WIDTH;
    float2 o[8] = {};
    float most = -INFINITY, sum = 0;
    for (int key = item.begin * KEYS; key < min(item.keys, item.end * KEYS); key++) {
      const float* row = reinterpret_cast<const float*>(
                             pool.at(a.step.pages[item.page + key / KEYS], a.layer)) +
                         key % KEYS * WIDTH;
      float2 x[8];
      float score = 0;
#pragma unroll
      for (int j = 0; j < 9; j++) {
        const float2 v = *reinterpret_cast<const float2*>(row + 64 * j + 2 * lane);
        if (j < 8) x[j] = v;
        score = fmaf(tensor_value(a.q, at + 64 * j + 2 * lane), v.x, score);
        score = fmaf(tensor_value(a.q, at + 64 * j + 2 * lane + 1), v.y, score);
      }
#pragma unroll
      for (int j = 16; j > 0; j /= 2) score += __shfl_xor_sync(~0u, score, j);
      score *= LOG2E;
      const float next = fmaxf(most, score);
      const float factor = power2(most - next), p = power2(score - next);
      most = next;
      sum = fmaf(sum, factor, p);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        o[j].x = fmaf(p, x[j].x, o[j].x * factor);
        o[j].y = fmaf(p, x[j].y, o[j].y * factor);
      }
    }
    for (int j = 0; j < 8; j++) {
      store_pair(a, item, slot, head, 64 * j + 2 * lane, o[j].x, o[j].y, 1 / sum);
    }
    if (slot && lane == 0) {
      slot[HEADS * R + 2 * head] = most;
      slot[HEADS * R + 2 * head + 1] = sum;
    }
  }
}

// Columns [first, first + 256) of O to their place.
__device__ __forceinline__ void store_item(const MlaDecodeArgs& a, const Item& item, float* slot,
                                           int first, const float (&o)[128], const Shared& s) {
  const int head = threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const float inverse = 1 / s.sums[head], inverse8 = 1 / s.sums[head + 8];
#pragma unroll
  for (int j = 0; j < 32; j++) {
    const int column = first + 8 * j + 2 * t;
    store_pair(a, item, slot, head, column, o[4 * j], o[4 * j + 1], inverse);
    store_pair(a, item, slot, head + 8, column, o[4 * j + 2], o[4 * j + 3], inverse8);
  }
}

__device__ __forceinline__ void rescale(float (&o)[128], float low, float high) {
  if (__all_sync(~0u, low == 1 && high == 1)) return;
#pragma unroll
  for (int j = 0; j < 32; j++) {
    o[4 * j] *= low;
    o[4 * j + 1] *= low;
    o[4 * j + 2] *= high;
    o[4 * j + 3] *= high;
  }
}

// O += P V, committed.
__device__ __forceinline__ void add_values(float (&o)[128], const Shared& s, int stage, int block) {
  const uint32_t weights = shared_address(s.weights);
  const uint32_t values = shared_address(s.pages[stage]) + block * BLOCK;
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < KEYS / 16; k++) {
    wgmma_values(o, operand_descriptor(weights + 32 * k), values_descriptor(values + 2048 * k));
  }
  wgmma_commit();
}

// S = q K^T, committed.
__device__ __forceinline__ void make_scores(float (&c)[32], const Shared& s, int stage) {
  const uint32_t q = shared_address(s.q), keys = shared_address(s.pages[stage]);
#pragma unroll
  for (int i = 0; i < 32; i++) c[i] = 0;
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < WIDTH / 16; k++) {
    const uint32_t offset = k / 4 * BLOCK + k % 4 * 32;
    Wgmma<64>::run(c, operand_descriptor(q + offset), operand_descriptor(keys + offset));
  }
  wgmma_commit();
}

template <int N>
__device__ __forceinline__ void pin(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// The warpgroup that makes the weights, and the left half of O.
__device__ __forceinline__ void attend_left(const MlaDecodeArgs& a, const Item& item, float* slot,
                                            Ring& ring, Shared& s) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int head = warp * 16 + g;
  float o[128], c[32];
#pragma unroll
  for (int i = 0; i < 128; i++) o[i] = 0;
  float max0 = -INFINITY, max8 = -INFINITY, sum0 = 0, sum8 = 0;
  for (int i = item.begin; i < item.end; i++) {
    barrier_wait(shared_address(&s.full[ring.stage]), ring.phase);
    TRACE();
    fence_async_proxy();
    make_scores(c, s, ring.stage);
    if (i > item.begin) {
      // The page before is read no more.
      wgmma_wait<1>();
      pin(o);
      if (lane == 0) barrier_arrive(shared_address(&s.empty[(ring.stage + STAGES - 1) % STAGES]));
    }
    wgmma_wait<0>();
    pin(c);
    TRACE();
    const int valid = item.keys - i * KEYS;
    if (valid < KEYS) {
#pragma unroll
      for (int j = 0; j < 32; j++) {
        if (j / 4 * 8 + 2 * t + j % 2 >= valid) c[j] = -INFINITY;
      }
    }
    float most0 = c[0], most8 = c[2];
#pragma unroll
    for (int j = 0; j < 8; j++) {
      most0 = fmaxf(most0, fmaxf(c[4 * j], c[4 * j + 1]));
      most8 = fmaxf(most8, fmaxf(c[4 * j + 2], c[4 * j + 3]));
    }
    most0 = fmaxf(most0, __shfl_xor_sync(~0u, most0, 1));
    most8 = fmaxf(most8, __shfl_xor_sync(~0u, most8, 1));
    most0 = fmaxf(max0, fmaxf(most0, __shfl_xor_sync(~0u, most0, 2)) * LOG2E);
    most8 = fmaxf(max8, fmaxf(most8, __shfl_xor_sync(~0u, most8, 2)) * LOG2E);
    const float factor0 = power2(max0 - most0), factor8 = power2(max8 - most8);
    max0 = most0;
    max8 = most8;
    sum0 *= factor0;
    sum8 *= factor8;
    if (i > item.begin) sync_computing<3>();  // the weights before are read no more
    char* to = s.weights + head * 128 + 4 * t;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const uint32_t p0 = bf16_pair(power2(fmaf(c[4 * j], LOG2E, -most0)),
                                    power2(fmaf(c[4 * j + 1], LOG2E, -most0)));
      const uint32_t p8 = bf16_pair(power2(fmaf(c[4 * j + 2], LOG2E, -most8)),
                                    power2(fmaf(c[4 * j + 3], LOG2E, -most8)));
      sum0 += bf16_value(p0 & 0xffff);
      sum0 += __uint_as_float(p0 & 0xffff0000u);
      sum8 += bf16_value(p8 & 0xffff);
      sum8 += __uint_as_float(p8 & 0xffff0000u);
      *reinterpret_cast<uint32_t*>(to + ((j ^ g) << 4)) = p0;
      *reinterpret_cast<uint32_t*>(to + 8 * 128 + ((j ^ g) << 4)) = p8;
    }
    if (t == 0) {
      s.factors[head] = factor0;
      s.factors[head + 8] = factor8;
    }
    rescale(o, factor0, factor8);
    fence_async_proxy();
    TRACE();
    sync_computing<2>();
    TRACE();
    pin(o);
    add_values(o, s, ring.stage, 0);
    ring.next();
  }
  wgmma_wait<0>();
  pin(o);
  if (lane == 0) barrier_arrive(shared_address(&s.empty[(ring.stage + STAGES - 1) % STAGES]));
  sum0 += __shfl_xor_sync(~0u, sum0, 1);
  sum8 += __shfl_xor_sync(~0u, sum8, 1);
  sum0 += __shfl_xor_sync(~0u, sum0, 2);
  sum8 += __shfl_xor_sync(~0u, sum8, 2);
  if (t == 0) {
    s.sums[head] = sum0;
    s.sums[head + 8] = sum8;
    if (slot) {
      float* states = slot + HEADS * R + 2 * head;
      *reinterpret_cast<float2*>(states) = {max0, sum0};
      *reinterpret_cast<float2*>(states + 16) = {max8, sum8};
    }
  }
  sync_computing<4>();
  TRACE();
  store_item(a, item, slot, 0, o, s);
  TRACE();
}

// The one of the right half of O.
__device__ __forceinline__ void attend_right(const MlaDecodeArgs& a, const Item& item, float* slot,
                                             Ring& ring, Shared& s) {
  const int warp = threadIdx.x % GROUP / 32, lane = threadIdx.x % 32;
  const int head = warp * 16 + lane / 4;
  float o[128];
#pragma unroll
  for (int i = 0; i < 128; i++) o[i] = 0;
  for (int i = item.begin; i < item.end; i++) {
    barrier_wait(shared_address(&s.full[ring.stage]), ring.phase);
    fence_async_proxy();
    sync_computing<2>();
    rescale(o, s.factors[head], s.factors[head + 8]);
    pin(o);
    add_values(o, s, ring.stage, 4);
    wgmma_wait<0>();
    pin(o);
    if (lane == 0) barrier_arrive(shared_address(&s.empty[ring.stage]));
    if (i + 1 < item.end) arrive_computing(3);
    ring.next();
  }
  sync_computing<4>();
  store_item(a, item, slot, 256, o, s);
}
#endif

__global__ void __launch_bounds__(THREADS, 1) attend(const __grid_constant__ MlaDecodeArgs a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  const int tiles = (a.heads + HEADS - 1) / HEADS;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(shared_address(&s.full[i]), GROUP);
      barrier_init(shared_address(&s.empty[i]), 8);
    }
    barrier_init_fence();
  }
#if defined(MOELA_TRACE)
  if (threadIdx.x == 0) s.traces[0] = s.traces[1] = 0;
  __syncthreads();
#endif
  TRACE();
  wait_for_previous();
  TRACE();
  const int n_rows = a.step.counts->n_absorbed, blocks = gridDim.x;
  int slots = 0, start = blockIdx.x;
  Ring ring;
  const int role = __shfl_sync(~0u, threadIdx.x / GROUP, 0);
  if (role == 2) {
    registers_dec<40>();
    for (int row = 0; row < n_rows; row += PLAN_ROWS) {
      const int rows = min(PLAN_ROWS, n_rows - row);
      __syncthreads();
      __syncthreads();
      const int items = s.first[rows] * tiles;
      for (; start < items; start += blocks) {
        copy_item(a, item_at(a, s, start, tiles, row, rows), ring, s);
      }
      start -= items;
    }
  } else {
    registers_inc<232>();
    for (int row = 0; row < n_rows; row += PLAN_ROWS) {
      const int rows = min(PLAN_ROWS, n_rows - row);
      __syncthreads();
      if (threadIdx.x < 32) plan_rows(a, row, row + rows, n_rows, tiles, slots, s);
      __syncthreads();
      const int items = s.first[rows] * tiles;
      for (; start < items; start += blocks) {
        const Item item = item_at(a, s, start, tiles, row, rows);
        float* slot =
            item.slot < 0 ? nullptr : slot_at(a, item.slot, item.head / HEADS, tiles);
        if (a.step.pools[item.pool].dtype == MOELA_F32) {
          attend_f32(a, item, slot);
          continue;
        }
        TRACE();
        load_query(a, item, s);
        TRACE();
        if (role == 0) attend_left(a, item, slot, ring, s);
        else attend_right(a, item, slot, ring, s);
      }
      start -= items;
    }
  }
  // Not before: blocks of the merge would take the place of this kernel's.
  allow_next();
#endif
}

// Splits of a row in ascending order, two heads at a time. Grid: (groups of heads; rows).
__global__ void __launch_bounds__(256) merge(const __grid_constant__ MlaDecodeArgs a) {
#if __CUDA_ARCH__ >= 900
  wait_for_previous();
  allow_next();
  const int n_rows = a.step.counts->n_absorbed, tiles = (a.heads + HEADS - 1) / HEADS;
  for (int row = blockIdx.y; row < n_rows; row += gridDim.y) {
    const RowSlots own = row_slots(a)[row];
    if (own.splits < 2) continue;
    const int64_t step = tiles * a.slots.slot_floats;
    for (int head = blockIdx.x * 2 + threadIdx.x / 128; head < a.heads; head += gridDim.x * 2) {
      const int column = threadIdx.x % 128 * 4;
      const float* slot = slot_at(a, own.slot, head / HEADS, tiles);
      const float* states = slot + HEADS * R + 2 * (head % HEADS);
      slot += head % HEADS * R + column;
      float most = -INFINITY;
      for (int i = 0; i < own.splits; i++) most = fmaxf(most, __ldcg(states + i * step));
      float sum = 0;
      float4 o = {0, 0, 0, 0};
#pragma unroll 8
      for (int i = 0; i < own.splits; i++) {
        const float2 state = __ldcg(reinterpret_cast<const float2*>(states + i * step));
        const float4 v = __ldcg(reinterpret_cast<const float4*>(slot + i * step));
        const float factor = exp2f(state.x - most);
        sum = fmaf(state.y, factor, sum);
        o.x = fmaf(v.x, factor, o.x);
        o.y = fmaf(v.y, factor, o.y);
        o.z = fmaf(v.z, factor, o.z);
        o.w = fmaf(v.w, factor, o.w);
      }
      const float inverse = 1 / sum;
      tensor_store_four(a.out, (int64_t(row) * a.heads + head) * R + column,
                        {o.x * inverse, o.y * inverse, o.z * inverse, o.w * inverse});
    }
  }
#endif
}

}  // namespace

void mla_decode_wgmma(const Launch& at, const MlaDecodeArgs& args) {
  static const bool allowed = [] {
    check(cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               sizeof(Shared)),
          "mla_decode");
    return true;
  }();
  (void)allowed;
  launch(at, attend, dim3(at.sms), dim3(THREADS), sizeof(Shared), args);
  if (args.slots.capacity == 0) return;
  const int per_block = at.absorbed <= 8 ? 2 : 16;
  const unsigned rows = at.absorbed < 65535 ? at.absorbed : 65535;
  launch(at, merge, dim3((args.heads + per_block - 1) / per_block, rows), dim3(256), 0, args);
}

#if defined(MOELA_TRACE)
void mla_wide_trace_read(long long* out) {
  cudaMemcpyFromSymbol(out, mla_wide_trace, sizeof mla_wide_trace);
  static long long zeros[132 * 64];
  cudaMemcpyToSymbol(mla_wide_trace, zeros, sizeof mla_wide_trace);
}
#endif

}  // namespace moela::cuda
