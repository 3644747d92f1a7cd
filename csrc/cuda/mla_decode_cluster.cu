// mla_decode on Hopper for r = 512 and dr = 64, every cache type: tiles of 16 heads on mma.sync.
//
// A cluster of eight blocks takes splits of a row one after another. Each block takes an eighth of
// a split's keys: one warp copies their rows to shared memory ahead of the others (bulk copies into
// a ring), eight warps compute, see mla_decode_tile.cuh.
// Then columns [64 i, 64 i + 64) of the eight results go to block i of the cluster (bulk copies
// between shared memories), which merges them in ascending order, then the row's splits: in
// registers where one cluster has them all, else through slots in memory, by whichever cluster of
// the row ends last. Both give the same.
#include "cuda/mla_decode_cluster.cuh"

namespace moela::cuda {

namespace {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define MOELA_CLUSTER __cluster_dims__(CLUSTER, 1, 1)
#else
#define MOELA_CLUSTER
#endif
__global__ void MOELA_CLUSTER __launch_bounds__(THREADS, 1)
    attend(const __grid_constant__ MlaDecodeArgs a) {
#if __CUDA_ARCH__ >= 900
  MOELA_ALIGNED_DYNAMIC_SHARED(128, char, memory);
  Shared& s = *reinterpret_cast<Shared*>(memory);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int rank = cluster_rank();
  const int clusters = gridDim.x / CLUSTER, cluster = blockIdx.x / CLUSTER;
  const int tiles = (a.heads + HEADS - 1) / HEADS;
  if (thread == 0) {
    s.keys.init(1);
    barrier_init(shared_address(&s.arrived), 1);
    barrier_init(shared_address(&s.taken), CLUSTER);
    barrier_init_fence();
  }
  cluster_sync();
  wait_for_previous();
  allow_next();

  // Side by side: a row alone is of the first segment.
  const int n_rows = a.step.counts->n_absorbed;
  const int first_keys = a.step.positions[0] + 1;
  const int first_page = a.step.segments[0].page, first_pool = a.step.segments[0].pool;
  const bool alone = n_rows == 1;
  const int g = lane / 4, t = lane % 4;
  RingPlace<STAGES> ring;
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
      load_rows(a, row_begin, row_begin + rows, thread, THREADS, s.plan);
      __syncthreads();
      if (warp == 0) {
        plan_rows(a, row_begin, row_begin + rows, n_rows, tiles, clusters, slots, s.plan);
      }
      __syncthreads();
      items = s.plan.first[rows] * tiles;
    }
    const auto item_of = [&](int index) {
      return alone
                 ? item_alone(a, first_keys, first_page, first_pool, index, tiles, clusters, items)
                 : item_at(a, s.plan, index, tiles, row_begin, rows);
    };

    if (warp == WARPS) {
      for (int i = cluster; i < items; i += clusters) {
        copy_item(a, item_of(i), rank, ring, s);
      }
      continue;
    }

    for (int i = cluster; i < items; i += clusters) {
      const Item item = item_of(i);
      const int dtype = a.step.pools[item.pool].dtype;
      const int tile = dtype == MOELA_F32 ? TILE_F32 : TILE;
      Query query;
      query.find(a, item.row, item.head, warp, lane);
      uint32_t fragments[9][4];
      if (dtype != MOELA_F32) query.load(a.q, fragments);
      const auto fragment = [&](int k, uint32_t (&x)[4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = fragments[k][i];
      };
      // Of the thread's four columns of the block's slice and a head.
      const int own_head = thread / 16, own_column = thread % 16 * 4;
      Result total = {-INFINITY, 0, {0, 0, 0, 0}};

      for (int split = item.begin; split < item.end; split++) {
        const MlaShare share = mla_share(item.keys, item.length, split, rank);
        if (thread == 0) {
          barrier_arrive_expect(shared_address(&s.arrived),
                                share.shares * (HEADS * SLICE + HEADS * 2) * 4);
        }
        float o[8][4];
#pragma unroll
        for (int j = 0; j < 8; j++) o[j][0] = o[j][1] = o[j][2] = o[j][3] = 0;
        float maximum = -INFINITY, sum = 0;  // of softmax_head()

        for (int key = share.begin; key < share.end; key += tile) {
          const int valid = min(tile, share.end - key);
          char* stage = s.keys.stages[ring.stage];
          barrier_wait(shared_address(&s.keys.full[ring.stage]), ring.phase);
          const bool written =
              attend_tile(a.q, query, fragment, dtype, stage, s.keys.scales[ring.stage], valid,
                          s.room, thread, o, maximum, sum, sync_computing);
          if (written) fence_async_proxy();
          __syncwarp();
          if (lane == 0) barrier_arrive(shared_address(&s.keys.empty[ring.stage]));
          ring.next();
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
            *reinterpret_cast<float2*>(s.own_states[softmax_head(warp, lane)]) = {maximum, sum};
          }
          fence_async_proxy();
          sync_computing();
          if (lane == 0) {
            const uint32_t barrier = remote(shared_address(&s.arrived), warp);
            bulk_send(remote(shared_address(s.received[rank]), warp), s.sent[warp],
                      HEADS * SLICE * 4, barrier);
            bulk_send(remote(shared_address(s.states[rank]), warp), s.own_states, HEADS * 8,
                      barrier);
          }
        }
        cluster_wait(shared_address(&s.arrived), split_phase);
        split_phase ^= 1;
        // As Result::add() of one after another; the factors of all do not wait for sums.
        Result merged = {-INFINITY, 0, {0, 0, 0, 0}};
        float mine[CLUSTER], other[CLUSTER], sums[CLUSTER];
#pragma unroll
        for (int block = 0; block < CLUSTER; block++) {
          if (block >= share.shares) continue;
          const float2 state = *reinterpret_cast<const float2*>(s.states[block][own_head]);
          const float most = fmaxf(merged.max, state.x);
          mine[block] = power2(merged.max - most);
          other[block] = power2(state.x - most);
          sums[block] = state.y;
          merged.max = most;
        }
#pragma unroll
        for (int block = 0; block < CLUSTER; block++) {
          if (block >= share.shares) continue;
          const float4 v = *reinterpret_cast<const float4*>(
              &s.received[block][own_head][column_at(own_head, own_column)]);
          merged.add(mine[block], sums[block], v, other[block]);
        }
        sync_computing();
        if (thread < CLUSTER) remote_arrive(remote(shared_address(&s.taken), thread));

        const float4 result = {merged.o[0], merged.o[1], merged.o[2], merged.o[3]};
        if (item.slot < 0) {
          total.add(merged.max, merged.sum, result);
        } else {
          float* slot =
              reinterpret_cast<float*>(a.scratch + a.slots.slots_offset) +
              (int64_t(item.slot + split) * tiles + item.head / HEADS) * a.slots.slot_floats;
          __stcg(reinterpret_cast<float4*>(slot + own_head * R + rank * SLICE + own_column),
                 result);
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
  // Others may still send here.
  __syncwarp();
  cluster_sync();
#endif
}

}  // namespace

void mla_decode_cluster(const Launch& at, const MlaDecodeArgs& args) {
  // How many clusters run at once: they share the work evenly.
  static const int clusters = [&] {
    check(cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)),
          "mla_decode");
    return most_clusters<CLUSTER>(at, attend, THREADS, sizeof(Shared));
  }();
  launch<CLUSTER>(at, attend, dim3(clusters * CLUSTER), dim3(THREADS), sizeof(Shared), args);
}

}  // namespace moela::cuda
