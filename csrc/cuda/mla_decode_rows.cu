// mla_decode on Hopper for r = 512, dr = 64 and many rows, every cache type: tiles of 16 heads on
// mma.sync as in mla_decode_cluster.cu, with the same sums in the same order, but without clusters.
//
// A block takes splits of a row one after another, and in it two groups of eight warps take the
// shares of a split in turn, each from a ring of its own that two warps fill: while one group waits
// (scores, softmax and values follow one another) the other computes. A group adds a share to the
// split's total, in shared memory, after the other has added the one before: in ascending order,
// as a cluster merges them. Who adds the last one adds the split to the row's total, or writes it
// to a slot where several blocks have splits of the row; whichever of these ends last merges them.
#include "cuda/mla_decode_rows.cuh"
#include "cuda/wgmma_mma.cuh"

namespace moela::cuda {

namespace {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// What a group's threads do with the items of a block.
struct Worker {
  const MlaDecodeArgs& a;
  Shared& s;
  const int tiles, group, thread, warp, lane, g, t;
  RingPlace<STAGES> ring;
  uint32_t shares = 0;  // of both groups, before the split at hand
  int turn = 0;         // of items[group]

  // A share's sums, of its keys alone.
  __device__ __forceinline__ void attend(const Query& query, const uint32_t (&kept)[KEPT][4],
                                         int dtype, const MlaShare& share, float (&o)[8][4]) {
    const int tile = dtype == MOELA_F32 ? TILE_F32 : TILE;
    KeyRing<STAGES>& keys = s.keys[group];
#pragma unroll
    for (int j = 0; j < 8; j++) o[j][0] = o[j][1] = o[j][2] = o[j][3] = 0;
    float maximum = -INFINITY, sum = 0;  // of softmax_head()
    const auto fragment = [&](int k, uint32_t (&x)[4]) {
      if (k < KEPT) {
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = kept[k][i];
      } else {
        const uint4 v = s.queries[group][warp % 4][k - KEPT][lane];
        x[0] = v.x;
        x[1] = v.y;
        x[2] = v.z;
        x[3] = v.w;
      }
    };
#pragma unroll 1
    for (int key = share.begin; key < share.end; key += tile) {
      const int valid = min(tile, share.end - key);
      barrier_wait(shared_address(&keys.full[ring.stage]), ring.phase);
      const bool written =
          attend_tile(a.q, query, fragment, dtype, keys.stages[ring.stage], keys.scales[ring.stage],
                      valid, s.rooms[group], thread, o, maximum, sum, SyncGroup{group});
      if (written) fence_async_proxy();
      __syncwarp();
      if (lane == 0) barrier_arrive(shared_address(&keys.empty[ring.stage]));
      ring.next();
    }
#pragma unroll
    for (int k = 8; k > 0; k /= 2) sum += __shfl_xor_sync(~0u, sum, k);
    if (lane % 16 == 0) {
      *reinterpret_cast<float2*>(s.states[group][softmax_head(warp, lane)]) = {maximum, sum};
    }
    SyncGroup{group}();
  }

  // Adds a share's sums, the split's `rank`th, to those before, which may be the other group's:
  // after it, `o` and `states` are of all. They are left for the next share where there is one.
  __device__ __forceinline__ void add_share(int rank, bool last, float (&o)[8][4], States& states) {
    States own;
    own.read(&s.states[group][0][0], g);
    const uint32_t before = shares + rank;
    if (before > 0) {
      barrier_wait(shared_address(&s.added[group ^ 1]), (before - 1) / GROUPS % 2);
    }
    states.clear();
    if (rank > 0) states.read(&s.totals[group ^ 1][0][0], g);
    float mine[2], other[2];
    states.add(own, mine, other);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float4* total = reinterpret_cast<float4*>(s.total[j][thread]);
      const float4 sum = add_four(o[j], other, rank > 0 ? *total : float4{}, mine);
      if (!last) *total = sum;
      set_four(o[j], sum);
    }
    if (!last && warp == 0 && t == 0) states.write(&s.totals[group][0][0], g);
  }

  // Adds a split's sums to those before of its item, in memory: after the last, these are written.
  __device__ __forceinline__ void add_split(const Item& item, int split, float (&o)[8][4],
                                            const States& states) {
    float* slot = slot_at(a, a.slots.capacity + blockIdx.x / tiles, blockIdx.x % tiles, tiles);
    float4* sums = reinterpret_cast<float4*>(slot) + thread;
    States total;
    total.clear();
    const bool first = split == item.begin, last = split + 1 == item.end;
    // Threads may still read the states before.
    if (!first) total.read(slot + HEADS * R + split % 2 * HEADS * 2, g);
    float mine[2], other[2];
    total.add(states, mine, other);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const float4 sum = add_four(o[j], other, first ? float4{} : sums[j * COMPUTING], mine);
      if (!last) sums[j * COMPUTING] = sum;
      set_four(o[j], sum);
    }
    if (last) {
      write_out(a, item, warp, g, t, o, total);
    } else if (warp == 0 && t == 0) {
      total.write(slot + HEADS * R + (split + 1) % 2 * HEADS * 2, g);
    }
  }

  // Leaves a split's sums in its slot.
  __device__ __forceinline__ void keep_split(const Item& item, int split, const float (&o)[8][4],
                                             const States& states) {
    float* slot = slot_at(a, item.slot + split, item.head / HEADS, tiles);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      __stcg(reinterpret_cast<float4*>(slot) + j * COMPUTING + thread,
             float4{o[j][0], o[j][1], o[j][2], o[j][3]});
    }
    if (warp == 0 && t == 0) {
      __stcg(reinterpret_cast<float2*>(slot + HEADS * R + 2 * g), states.state[0]);
      __stcg(reinterpret_cast<float2*>(slot + HEADS * R + 2 * g + 16), states.state[1]);
    }
  }

  // `find` says the item, to one thread: what is in shared memory takes no registers.
  template <class Find>
  __device__ __forceinline__ void take(const Find& find) {
    const Item& item = s.items[group][turn];
    if (thread == 0) s.items[group][turn] = find();
    turn ^= 1;
    SyncGroup{group}();
    const int dtype = a.step.pools[item.pool].dtype;
    Query query;
    query.find(a, item.row, item.head, warp, lane);
    uint32_t kept[KEPT][4];
    if (dtype != MOELA_F32) {
      uint32_t fragments[9][4];
      query.load(a.q, fragments);
#pragma unroll
      for (int k = 0; k < 9; k++) {
        const uint32_t* x = fragments[k];
        if (k < KEPT) {
#pragma unroll
          for (int i = 0; i < 4; i++) kept[k][i] = x[i];
        } else if (warp < 4) {
          s.queries[group][warp][k - KEPT][lane] = {x[0], x[1], x[2], x[3]};
        }
      }
      SyncGroup{group}();
    }
    bool ended = false;
#pragma unroll 1
    for (int split = item.begin; split < item.end; split++) {
      const int count = mla_share(item.keys, item.length, split, 0).shares;
#pragma unroll 1
      for (int rank = (shares + group) % GROUPS; rank < count; rank += GROUPS) {
        float o[8][4];
        const MlaShare share = mla_share(item.keys, item.length, split, rank);
        // Loops of their own: what one type needs takes no registers of another's.
        if (dtype == MOELA_BF16)
          attend(query, kept, MOELA_BF16, share, o);
        else if (dtype == MOELA_F32)
          attend(query, kept, MOELA_F32, share, o);
        else
          attend(query, kept, dtype, share, o);
        const bool last = rank + 1 == count;
        States states;
        add_share(rank, last, o, states);
        if (last) {
          if (item.slot < 0)
            add_split(item, split, o, states);
          else
            keep_split(item, split, o, states);
          ended = split + 1 == item.end;
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(shared_address(&s.added[group]));
      }
      shares += count;
    }
    if (item.slot >= 0 && ended) merge(a, item, group, &s.last[group]);
  }
};

// A copying warp of a group: its shares of an item.
__device__ __forceinline__ void copy_item(const MlaDecodeArgs& a, const Item& item, int group,
                                          int part, uint32_t& shares, RingPlace<STAGES>& ring,
                                          Shared& s) {
  for (int split = item.begin; split < item.end; split++) {
    const int count = mla_share(item.keys, item.length, split, 0).shares;
    for (int rank = (shares + group) % GROUPS; rank < count; rank += GROUPS) {
      copy_share<COPYING>(a, item, mla_share(item.keys, item.length, split, rank), part, ring,
                          s.keys[group]);
    }
    shares += count;
  }
}
#endif

__global__ void __launch_bounds__(THREADS, 1) attend_rows(const __grid_constant__ MlaDecodeArgs a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  MOELA_ALIGNED_DYNAMIC_SHARED(128, char, memory);
  Shared& s = *reinterpret_cast<Shared*>(memory);
  const int tiles = (a.heads + HEADS - 1) / HEADS, blocks = gridDim.x;
  if (threadIdx.x == 0) {
    for (int i = 0; i < GROUPS; i++) {
      s.keys[i].init(COPYING);
      barrier_init(shared_address(&s.added[i]), WARPS);
    }
    barrier_init_fence();
  }
  wait_for_previous();
  allow_next();
  const int n_rows = a.step.counts->n_absorbed;
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), group = warp / WARPS;
  int start = blockIdx.x;
  if (group == GROUPS) {
    registers_dec<32>();
    const int own = warp % WARPS;
    uint32_t shares = 0;
    RingPlace<STAGES> ring;
    for (int row = 0; row < n_rows; row += PLAN_ROWS) {
      const int rows = min(PLAN_ROWS, n_rows - row);
      __syncthreads();
      __syncthreads();
      __syncthreads();
      const int items = s.plan.first[rows] * tiles;
      for (; start < items; start += blocks) {
        copy_item(a, item_at(a, s.plan, start, tiles, row, rows), own / COPYING, own % COPYING,
                  shares, ring, s);
      }
      start -= items;
    }
  } else {
    registers_inc<112>();
    const int thread = threadIdx.x % COMPUTING, lane = thread % 32;
    Worker worker = {a, s, tiles, group, thread, thread / 32, lane, lane / 4, lane % 4, {}};
    int slots = 0;
    for (int row = 0; row < n_rows; row += PLAN_ROWS) {
      const int rows = min(PLAN_ROWS, n_rows - row);
      __syncthreads();
      load_rows(a, row, row + rows, threadIdx.x, GROUPS * COMPUTING, s.plan);
      __syncthreads();
      if (warp == 0) plan_rows(a, row, row + rows, n_rows, tiles, blocks, slots, s.plan);
      __syncthreads();
      const int items = s.plan.first[rows] * tiles;
      for (; start < items; start += blocks) {
        worker.take([&] { return item_at(a, s.plan, start, tiles, row, rows); });
      }
      start -= items;
    }
  }
#endif
}

}  // namespace

bool mla_decode_rows(const Launch& at, const MlaDecodeArgs& args) {
  static const bool allowed = [] {
    check(cudaFuncSetAttribute(attend_rows, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               sizeof(Shared)),
          "mla_decode");
    return true;
  }();
  (void)allowed;
  // The last slots are the blocks' own, for rows whose splits a block has all.
  MlaDecodeArgs own = args;
  const int tiles = (args.heads + HEADS - 1) / HEADS;
  own.slots.capacity -= (at.sms + tiles - 1) / tiles;
  if (own.slots.capacity < 0) return false;
  launch(at, attend_rows, dim3(at.sms), dim3(THREADS), sizeof(Shared), own);
  return true;
}

}  // namespace moela::cuda
