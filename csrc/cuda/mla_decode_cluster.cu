// mla_decode on Hopper for r = 512 and dr = 64, every cache type: tiles of 16 heads on mma.sync.
//
// A cluster of eight blocks takes splits of a row one after another. Each block takes an eighth of a
// split's keys: one warp copies their rows to shared memory ahead of the others (bulk copies into a
// ring), eight warps compute, 32 keys at a time:
//   S [16, 32] = q K^T: warp w sums dims [144 (w % 4), ...) of keys [16 (w / 4), ...); the four sums
//   are added in order where the running softmax reads them; O [16, 512] += P V: 64 columns a warp.
// Then columns [64 i, 64 i + 64) of the eight results go to block i of the cluster (st.async), which
// merges them in ascending order, then the row's splits: in registers where one cluster has them
// all, else through slots in memory, by whichever cluster of the row ends last. Both give the same.
//
// F32 caches take the same way with f32 arithmetic in the place of mma.sync, 16 keys at a time.
#include "cuda/barrier.cuh"
#include "cuda/cache_read.cuh"
#include "cuda/mla_decode.cuh"

namespace moela::cuda {

#if defined(MOELA_TRACE)
__device__ long long mla_trace[132][64];
#define TRACE(i)                                                                     \
  do {                                                                               \
    if ((i) < 64 && threadIdx.x % 256 == 0) {                                        \
      const long long now = clock64();                                                             \
      mla_trace[blockIdx.x][i] = now;                                                \
    }                                                                                \
  } while (0)
#else
#define TRACE(i)
#endif

namespace {

constexpr int CLUSTER = 8;
constexpr int WARPS = 8;                     // that compute
constexpr int COMPUTING = 32 * WARPS;
constexpr int THREADS = COMPUTING + 32;
constexpr int R = MLA_FAST_R, DR = MLA_FAST_DR, WIDTH = R + DR;
constexpr int HEADS = MLA_HEAD_TILE;
constexpr int SLICE = R / CLUSTER;           // columns that a block merges
constexpr int TILE = 32, TILE_F32 = 16;      // keys
constexpr int STAGES = 3;
constexpr int ROW = 2 * WIDTH + 16;          // bytes of a bf16 row: 16 more, against bank conflicts
constexpr int ROW_F32 = 4 * WIDTH + 16;
constexpr int STAGE = TILE * ROW;
constexpr int PLAN_ROWS = 512;
constexpr int S_STRIDE = 40, P_STRIDE = 40;  // against bank conflicts
static_assert(TILE_F32 * ROW_F32 <= STAGE && R == 64 * WARPS && WIDTH % (4 * 16) == 0, "");

struct Shared {
  alignas(128) char stages[STAGES][STAGE];
  alignas(128) float sent[CLUSTER][HEADS][SLICE];  // by target block; columns swapped, see column_at
  alignas(128) float received[CLUSTER][HEADS][SLICE];  // by source block
  alignas(16) float own_states[HEADS][2];  // maxima and sums
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
  int group;                      // splits of an item
  int first[PLAN_ROWS + 1];       // items before each row
  int keys[PLAN_ROWS], page[PLAN_ROWS], pool[PLAN_ROWS], slot[PLAN_ROWS];
};

// Some splits of a row, for a tile of heads.
struct Item {
  int row, keys, page, pool, slot, parts, length, begin, end, head;
};

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ uint32_t block_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ uint32_t remote(uint32_t address, int rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
// From this block's shared memory to another's; both end at the other's barrier.
__device__ __forceinline__ void send(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(to),
      "r"(shared_address(from)), "r"(bytes), "r"(barrier)
      : "memory");
}
// Where a slice has a head's column: eights of columns are swapped against bank conflicts.
__device__ __forceinline__ int column_at(int head, int column) {
  return column ^ (head % 8 * 8);
}
__device__ __forceinline__ void remote_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier)
               : "memory");
}
__device__ __forceinline__ void cluster_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n"
        "}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (!done);
}
__device__ __forceinline__ void cluster_sync() {
  asm volatile(
      "barrier.cluster.arrive.aligned;\n"
      "barrier.cluster.wait.aligned;\n" ::
          : "memory");
}
__device__ __forceinline__ void bulk_copy(uint32_t to, const void* from, int bytes,
                                          uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
// Of the warps that compute.
__device__ __forceinline__ void sync_computing() {
  asm volatile("bar.sync 1, %0;" ::"n"(COMPUTING) : "memory");
}

__device__ __forceinline__ void load_matrices(uint32_t (&m)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_transposed(uint32_t (&m)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ float power2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// A result of attention over some keys: the sum of weights relative to 2^max, and of weights times
// latents.
struct Result {
  float max, sum, o[4];

  __device__ __forceinline__ void add(float m, float l, const float4& v) {
    const float most = fmaxf(max, m);
    const float mine = power2(max - most), other = power2(m - most);
    max = most;
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
    if (s.first[middle] <= item) low = middle;
    else high = middle - 1;
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

// Keys [begin, end) of a split that the block `rank` takes; `blocks` have any.
struct Share {
  int begin, end, blocks;
};
__device__ __forceinline__ Share share_of(const Item& item, int split, int rank) {
  const int begin = split * item.length, end = min(item.keys, begin + item.length);
  const int part = ((end - begin + CLUSTER - 1) / CLUSTER + TILE - 1) / TILE * TILE;
  return {begin + rank * part, min(end, begin + (rank + 1) * part), (end - begin + part - 1) / part};
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
    const Share share = share_of(item, split, rank);
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
          bulk_copy(to + STAGE - TILE * row_bytes, from + row * row_bytes, rows * row_bytes, full);
          bulk_copy(shared_address(s.scales[ring.stage]),
                    from + MOELA_PAGE_TOKENS * row_bytes + 2 * row, 2 * TILE, full);
        }
      }
      __syncwarp();
      if (!scaled && lane < rows) {
        bulk_copy(to + lane * stride, from + (row + lane) * row_bytes, row_bytes, full);
      }
      ring.next();
    }
  }
}

// Rows of a stage from their type to bf16, in place; all computing threads.
template <int DTYPE>
__device__ __forceinline__ void to_bf16(char* stage, const uint8_t (*codes)[2], int rows) {
  constexpr int ROW_BYTES = DTYPE == MOELA_INT6 ? WIDTH / 4 * 3 : WIDTH;
  constexpr int EIGHTS = WIDTH / 64;
  static_assert(COMPUTING == 8 * TILE && EIGHTS * 64 == WIDTH, "");
  // Eight threads a row.
  const int row = threadIdx.x / 8, column = threadIdx.x % 8 * 8;
  const char* raw = stage + STAGE - TILE * ROW_BYTES + row * ROW_BYTES;
  CacheEight<DTYPE> eights[EIGHTS];
#pragma unroll
  for (int j = 0; j < EIGHTS; j++) eights[j].load(raw, column + 64 * j);
  const float scale = row < rows ? cache_scale(codes[row][0]) : 0;
  const float key_scale = row < rows ? cache_scale(codes[row][1]) : 0;
  sync_computing();
#pragma unroll
  for (int j = 0; j < EIGHTS; j++) {
    uint4 out = {0, 0, 0, 0};
    if (row < rows) out = cache_bf16<DTYPE>(eights[j], j == R / 64 ? key_scale : scale);
    *reinterpret_cast<uint4*>(stage + row * ROW + 2 * column + 128 * j) = out;
  }
}

__device__ __forceinline__ float2 query_pair(const Tensor& q, int64_t at, bool valid) {
  if (!valid) return {0.f, 0.f};
  if (q.dtype == MOELA_F32) return *reinterpret_cast<const float2*>(static_cast<const float*>(q.data) + at);
  const uint32_t pair = *reinterpret_cast<const uint32_t*>(static_cast<const uint16_t*>(q.data) + at);
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
      v[i / 4][i % 4] =
          *reinterpret_cast<const float2*>(from[i % 2] + i / 4 * 16 + i % 4 / 2 * 8);
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

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define MOELA_CLUSTER __cluster_dims__(CLUSTER, 1, 1)
#else
#define MOELA_CLUSTER
#endif
__global__ void MOELA_CLUSTER __launch_bounds__(THREADS, 1)
    attend(const __grid_constant__ MlaDecodeArgs a) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int rank = block_rank();
  const int clusters = gridDim.x / CLUSTER, cluster = blockIdx.x / CLUSTER;
  const int tiles = (a.heads + HEADS - 1) / HEADS;
  TRACE(0);
#if defined(MOELA_TRACE)
  int trace = thread < COMPUTING ? 5 : 37;
#endif
  if (thread == 0) {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(shared_address(&s.full[i]), 1);
      barrier_init(shared_address(&s.empty[i]), WARPS);
    }
    barrier_init(shared_address(&s.arrived), 1);
    barrier_init(shared_address(&s.taken), CLUSTER);
    barrier_init_fence();
  }
  cluster_sync();
  TRACE(1);
  wait_for_previous();
  TRACE(2);
  allow_next();

  // Side by side: a row alone is of the first segment.
  const int n_rows = a.step.counts->n_absorbed;
  const int first_keys = a.step.positions[0] + 1;
  const int first_page = a.step.segments[0].page, first_pool = a.step.segments[0].pool;
  const bool alone = n_rows == 1;
  const int g = lane / 4, t = lane % 4;
  const int quarter = warp % 4, half = warp / 4;
  Ring ring;
  uint32_t split_phase = 0;
  bool sent = false;
  int slots = 0;
  for (int row_begin = 0; row_begin < n_rows; row_begin += PLAN_ROWS) {
    const int rows = min(PLAN_ROWS, n_rows - row_begin);
    int items;
    if (alone) {
      item_alone(a, first_keys, first_page, first_pool, 0, tiles, clusters, items);
    } else {
      __syncthreads();
      if (warp == 0) {
        plan_rows(a, row_begin, row_begin + rows, n_rows, tiles, clusters, slots, s);
      }
      __syncthreads();
      items = s.first[rows] * tiles;
    }
    const auto item_of = [&](int index) {
      return alone ? item_alone(a, first_keys, first_page, first_pool, index, tiles, clusters, items)
                   : item_at(a, s, index, tiles, row_begin, rows);
    };
    TRACE(3);

    if (warp == WARPS) {
      for (int i = cluster; i < items; i += clusters) {
        copy_item(a, item_of(i), rank, ring, s);
      }
      continue;
    }

    for (int i = cluster; i < items; i += clusters) {
      const Item item = item_of(i);
      const int dtype = a.step.pools[item.pool].dtype;
      const bool is_f32 = dtype == MOELA_F32;
      const int tile = is_f32 ? TILE_F32 : TILE;
      const int64_t q_at = (int64_t(item.row) * a.heads + item.head + g) * WIDTH + quarter * 144;
      const bool low = item.head + g < a.heads, high = item.head + g + 8 < a.heads;
      uint32_t query[9][4];
      if (!is_f32) load_query(a.q, q_at + 2 * t, low, high, query);
      TRACE(4);
      // Of the thread's four columns of the block's slice and a head.
      const int own_head = thread / 16, own_column = thread % 16 * 4;
      Result total = {-INFINITY, 0, {0, 0, 0, 0}};

      for (int split = item.begin; split < item.end; split++) {
        const Share share = share_of(item, split, rank);
        if (thread == 0) {
          barrier_arrive_expect(shared_address(&s.arrived),
                                share.blocks * (HEADS * SLICE + HEADS * 2) * 4);
        }
        float o[8][4];
#pragma unroll
        for (int j = 0; j < 8; j++) o[j][0] = o[j][1] = o[j][2] = o[j][3] = 0;
        float maximum = -INFINITY, sum = 0;  // of head 2 warp + lane / 16

        for (int key = share.begin; key < share.end; key += tile) {
          const int valid = min(tile, share.end - key);
          char* stage = s.stages[ring.stage];
          barrier_wait(shared_address(&s.full[ring.stage]), ring.phase);
          TRACE(trace++);
          bool written = true;
          switch (dtype) {
            case MOELA_FP8:
              to_bf16<MOELA_FP8>(stage, s.scales[ring.stage], valid);
              break;
            case MOELA_INT8:
              to_bf16<MOELA_INT8>(stage, s.scales[ring.stage], valid);
              break;
            case MOELA_INT6:
              to_bf16<MOELA_INT6>(stage, s.scales[ring.stage], valid);
              break;
            case MOELA_BF16:
              // What lies beyond must not enter, not even with weight 0.
              written = valid < TILE;
              for (int j = valid * (ROW / 16) + thread; j < TILE * (ROW / 16); j += COMPUTING) {
                reinterpret_cast<uint4*>(stage)[j] = {0, 0, 0, 0};
              }
              break;
            default:
              written = false;
          }
          if (written) sync_computing();

          // Scores.
          float c[4][4] = {};  // even and odd steps of K apart
          if (!is_f32) {
            const uint32_t from = shared_address(stage) +
                                  (half * 16 + lane / 16 * 8 + lane % 8) * ROW + lane / 8 % 2 * 16 +
                                  quarter * 288;
#pragma unroll
            for (int k = 0; k < 9; k++) {
              uint32_t b[4];
              load_matrices(b, from + 32 * k);
              const uint32_t* q = query[k];
              mma_bf16(c[k % 2 * 2], q[0], q[1], q[2], q[3], b[0], b[1]);
              mma_bf16(c[k % 2 * 2 + 1], q[0], q[1], q[2], q[3], b[2], b[3]);
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
              c[0][j] += c[2][j];
              c[1][j] += c[3][j];
            }
          } else if (half == 0) {
            const char* from = stage + 2 * t * ROW_F32 + quarter * 144 * 4;
#pragma unroll 1
            for (int d = 0; d < 144; d += 2) {
              const float2 q0 = query_pair(a.q, q_at + d, low);
              const float2 q8 = query_pair(a.q, q_at + 8 * WIDTH + d, high);
#pragma unroll
              for (int j = 0; j < 4; j++) {
                const int k = j / 2 * 8 + j % 2;
                if (2 * t + k >= valid) continue;
                const float2 x = *reinterpret_cast<const float2*>(from + k * ROW_F32 + d * 4);
                c[j / 2][j % 2] = fmaf(q0.y, x.y, fmaf(q0.x, x.x, c[j / 2][j % 2]));
                c[j / 2][j % 2 + 2] = fmaf(q8.y, x.y, fmaf(q8.x, x.x, c[j / 2][j % 2 + 2]));
              }
            }
          }
#pragma unroll
          for (int j = 0; j < 2; j++) {
            float* to = &s.scores[quarter][g][half * 16 + j * 8 + 2 * t];
            *reinterpret_cast<float2*>(to) = {c[j][0], c[j][1]};
            *reinterpret_cast<float2*>(to + 8 * S_STRIDE) = {c[j][2], c[j][3]};
          }
          sync_computing();

          // The running softmax: half a warp a head, two keys a lane.
          {
            const int head = 2 * warp + lane / 16, key0 = lane % 16;
            float x[2];
#pragma unroll
            for (int j = 0; j < 2; j++) {
              const float* from = &s.scores[0][head][key0 + 16 * j];
              x[j] = from[0];
#pragma unroll
              for (int k = 1; k < 4; k++) x[j] += from[k * HEADS * S_STRIDE];
              x[j] = key0 + 16 * j < valid ? x[j] * 1.44269504088896341f : -INFINITY;
            }
            float most = fmaxf(x[0], x[1]);
#pragma unroll
            for (int k = 8; k > 0; k /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, k));
            most = fmaxf(most, maximum);
            float p[2] = {power2(x[0] - most), power2(x[1] - most)};
            if (is_f32) {
              s.scores[0][head][key0] = p[0];
              s.scores[0][head][key0 + 16] = p[1];
            } else {
              const uint32_t bits = bf16_pair(p[0], p[1]);
              s.weights[head][key0] = static_cast<uint16_t>(bits);
              s.weights[head][key0 + 16] = static_cast<uint16_t>(bits >> 16);
              p[0] = bf16_value(bits & 0xffff);
              p[1] = __uint_as_float(bits & 0xffff0000u);
            }
            const float factor = power2(maximum - most);
            if (key0 == 0) s.factors[head] = factor;
            // The lane's share of the sum: shares are added at the end.
            sum = fmaf(sum, factor, p[0] + p[1]);
            maximum = most;
          }
          sync_computing();

          // Weights times latents.
          const float factor0 = s.factors[g], factor8 = s.factors[g + 8];
#pragma unroll
          for (int j = 0; j < 8; j++) {
            o[j][0] *= factor0;
            o[j][1] *= factor0;
            o[j][2] *= factor8;
            o[j][3] *= factor8;
          }
          if (!is_f32) {
            const uint32_t weights = shared_address(s.weights) + lane % 16 * (P_STRIDE * 2) +
                                     lane / 16 * 16;
            const uint32_t from =
                shared_address(stage) + lane % 16 * ROW + warp * 128 + lane / 16 * 16;
#pragma unroll
            for (int k = 0; k < 2; k++) {
              uint32_t p[4];
              load_matrices(p, weights + 32 * k);
#pragma unroll
              for (int j = 0; j < 4; j++) {
                uint32_t b[4];
                load_transposed(b, from + k * 16 * ROW + 32 * j);
                mma_bf16(o[2 * j], p[0], p[1], p[2], p[3], b[0], b[1]);
                mma_bf16(o[2 * j + 1], p[0], p[1], p[2], p[3], b[2], b[3]);
              }
            }
          } else {
#pragma unroll 1
            for (int k = 0; k < valid; k++) {
              const float p0 = s.scores[0][g][k], p8 = s.scores[0][g + 8][k];
              const char* from = stage + k * ROW_F32 + (warp * 64 + 2 * t) * 4;
#pragma unroll
              for (int j = 0; j < 8; j++) {
                const float2 v = *reinterpret_cast<const float2*>(from + j * 32);
                o[j][0] = fmaf(p0, v.x, o[j][0]);
                o[j][1] = fmaf(p0, v.y, o[j][1]);
                o[j][2] = fmaf(p8, v.x, o[j][2]);
                o[j][3] = fmaf(p8, v.y, o[j][3]);
              }
            }
            sync_computing();  // scores are read no more
          }
          if (written) fence_async_proxy();
          __syncwarp();
          if (lane == 0) barrier_arrive(shared_address(&s.empty[ring.stage]));
          ring.next();
          TRACE(trace++);
        }

        // Warp w's columns are block w's slice.
        if (sent) cluster_wait(shared_address(&s.taken), split_phase ^ 1);
        sent = true;
        if (share.begin < share.end) {
#pragma unroll
          for (int j = 0; j < 8; j++) {
            const int column = column_at(g, 8 * j + 2 * t);
            *reinterpret_cast<float2*>(&s.sent[warp][g][column]) = {o[j][0], o[j][1]};
            *reinterpret_cast<float2*>(&s.sent[warp][g + 8][column]) = {o[j][2], o[j][3]};
          }
#pragma unroll
          for (int k = 8; k > 0; k /= 2) sum += __shfl_xor_sync(~0u, sum, k);
          if (lane % 16 == 0) {
            *reinterpret_cast<float2*>(s.own_states[2 * warp + lane / 16]) = {maximum, sum};
          }
          fence_async_proxy();
          sync_computing();
          if (lane == 0) {
            const uint32_t barrier = remote(shared_address(&s.arrived), warp);
            send(remote(shared_address(s.received[rank]), warp), s.sent[warp], HEADS * SLICE * 4,
                 barrier);
            send(remote(shared_address(s.states[rank]), warp), s.own_states, HEADS * 8, barrier);
          }
        }
        TRACE(trace++);
        cluster_wait(shared_address(&s.arrived), split_phase);
        TRACE(trace++);
        split_phase ^= 1;
        Result merged = {-INFINITY, 0, {0, 0, 0, 0}};
        for (int block = 0; block < share.blocks; block++) {
          merged.max = fmaxf(merged.max, s.states[block][own_head][0]);
        }
#pragma unroll 4
        for (int block = 0; block < share.blocks; block++) {
          const float2 state = *reinterpret_cast<const float2*>(s.states[block][own_head]);
          const float4 v =
              *reinterpret_cast<const float4*>(&s.received[block][own_head][column_at(own_head, own_column)]);
          const float factor = power2(state.x - merged.max);
          merged.sum = fmaf(state.y, factor, merged.sum);
          merged.o[0] = fmaf(v.x, factor, merged.o[0]);
          merged.o[1] = fmaf(v.y, factor, merged.o[1]);
          merged.o[2] = fmaf(v.z, factor, merged.o[2]);
          merged.o[3] = fmaf(v.w, factor, merged.o[3]);
        }
        sync_computing();
        if (thread < CLUSTER) remote_arrive(remote(shared_address(&s.taken), thread));

        TRACE(trace++);
        const float4 result = {merged.o[0], merged.o[1], merged.o[2], merged.o[3]};
        if (item.slot < 0) {
          total.add(merged.max, merged.sum, result);
        } else {
          float* slot = reinterpret_cast<float*>(a.scratch + a.slots.slots_offset) +
                        (int64_t(item.slot + split) * tiles + item.head / HEADS) *
                            a.slots.slot_floats;
          __stcg(reinterpret_cast<float4*>(slot + own_head * R + rank * SLICE + own_column), result);
          if (own_column == 0) {
            __stcg(reinterpret_cast<float2*>(slot + HEADS * R + (rank * HEADS + own_head) * 2),
                   float2{merged.max, merged.sum});
          }
        }
      }

      if (item.slot >= 0) {
        int* counter = reinterpret_cast<int*>(a.scratch) +
                       (int64_t(item.slot) * tiles + item.head / HEADS) * CLUSTER + rank;
        __threadfence();
        sync_computing();
        if (thread == 0) {
          const bool last = atomicAdd(counter, 1) == item.parts - 1;
          if (last) *counter = 0;
          s.last = last;
          __threadfence();
        }
        sync_computing();
        const bool last = s.last;
        sync_computing();
        if (!last) continue;
        const int splits = (item.keys + item.length - 1) / item.length;
        const float* slot = reinterpret_cast<const float*>(a.scratch + a.slots.slots_offset) +
                            (int64_t(item.slot) * tiles + item.head / HEADS) * a.slots.slot_floats;
        const int64_t step = tiles * a.slots.slot_floats;
        const float* states = slot + HEADS * R + (rank * HEADS + own_head) * 2;
        slot += own_head * R + rank * SLICE + own_column;
        for (int split = 0; split < splits; split += 4) {
          float4 v[4];
          float2 state[4];
#pragma unroll
          for (int j = 0; j < 4; j++) {
            if (split + j >= splits) continue;
            v[j] = __ldcg(reinterpret_cast<const float4*>(slot + (split + j) * step));
            state[j] = __ldcg(reinterpret_cast<const float2*>(states + (split + j) * step));
          }
#pragma unroll
          for (int j = 0; j < 4; j++) {
            if (split + j < splits) total.add(state[j].x, state[j].y, v[j]);
          }
        }
      }
      if (item.head + own_head < a.heads) {
        const int64_t to =
            (int64_t(item.row) * a.heads + item.head + own_head) * R + rank * SLICE + own_column;
        const float inverse = 1 / total.sum;
        const float4 v = {total.o[0] * inverse, total.o[1] * inverse, total.o[2] * inverse,
                          total.o[3] * inverse};
        if (a.out.dtype == MOELA_F32) {
          *reinterpret_cast<float4*>(static_cast<float*>(a.out.data) + to) = v;
        } else {
          *reinterpret_cast<uint2*>(static_cast<uint16_t*>(a.out.data) + to) = {
              bf16_pair(v.x, v.y), bf16_pair(v.z, v.w)};
        }
      }
    }
  }
  TRACE(trace++);
  // Others may still send here.
  __syncwarp();
  cluster_sync();
#endif
}

}  // namespace

void mla_decode_cluster(const Launch& at, const MlaDecodeArgs& args) {
  // How many clusters run at once: they share the work evenly.
  static const int clusters = [&] {
    check(cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               sizeof(Shared)),
          "mla_decode");
    cudaLaunchConfig_t config{};
    config.gridDim = at.sms / CLUSTER * CLUSTER;
    config.blockDim = THREADS;
    config.dynamicSmemBytes = sizeof(Shared);
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {CLUSTER, 1, 1};
    config.attrs = &attribute;
    config.numAttrs = 1;
    int most = 0;
    check(cudaOccupancyMaxActiveClusters(&most, attend, &config), "mla_decode");
    return most > at.sms / CLUSTER ? at.sms / CLUSTER : most;
  }();
  launch(at, attend, dim3(clusters * CLUSTER), dim3(THREADS), sizeof(Shared), args);
}

#if defined(MOELA_TRACE)
void mla_trace_read(long long* out) {
  cudaMemcpyFromSymbol(out, mla_trace, sizeof mla_trace);
  static long long zeros[132 * 64];
  cudaMemcpyToSymbol(mla_trace, zeros, sizeof mla_trace);
}
#endif

}  // namespace moela::cuda
