// mla_decode on Hopper for r = 512 and dr = 64, every cache type: tiles of 16 heads on mma.sync.
//
// A cluster of eight blocks takes splits of a row one after another. Each block takes an eighth of
// a split's keys: one warp copies their rows to shared memory ahead of the others (bulk copies into
// a ring), eight warps compute, 32 keys at a time:
//   S [16, 32] = q K^T: warp w sums dims [144 (w % 4), ...) of keys [16 (w / 4), ...); the four
//   sums are added in order where the running softmax reads them; O [16, 512] += P V: 64 columns a
//   warp.
// Then columns [64 i, 64 i + 64) of the eight results go to block i of the cluster (bulk copies
// between shared memories), which merges them in ascending order, then the row's splits: in
// registers where one cluster has them all, else through slots in memory, by whichever cluster of
// the row ends last. Both give the same.
//
// F32 caches take the same way with f32 arithmetic in the place of mma.sync, 16 keys at a time.
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
    for (int i = 0; i < STAGES; i++) {
      barrier_init(shared_address(&s.full[i]), 1);
      barrier_init(shared_address(&s.empty[i]), WARPS);
    }
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
      return alone
                 ? item_alone(a, first_keys, first_page, first_pool, index, tiles, clusters, items)
                 : item_at(a, s, index, tiles, row_begin, rows);
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
      const bool is_f32 = dtype == MOELA_F32;
      const int tile = is_f32 ? TILE_F32 : TILE;
      const int64_t q_at = (int64_t(item.row) * a.heads + item.head + g) * WIDTH + quarter * 144;
      const bool low = item.head + g < a.heads, high = item.head + g + 8 < a.heads;
      uint32_t query[9][4];
      if (!is_f32) load_query(a.q, q_at + 2 * t, low, high, query);
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
        float maximum = -INFINITY, sum = 0;  // of head 2 warp + lane / 16

        for (int key = share.begin; key < share.end; key += tile) {
          const int valid = min(tile, share.end - key);
          char* stage = s.stages[ring.stage];
          barrier_wait(shared_address(&s.full[ring.stage]), ring.phase);
          bool written = true;
          const auto convert = [&](auto type) {
            cache_tile_to_bf16<decltype(type)::value, COMPUTING, TILE, R, DR, ROW>(
                stage, s.scales[ring.stage], valid, sync_computing);
          };
          switch (dtype) {
            case MOELA_FP8:
              convert(std::integral_constant<int, MOELA_FP8>{});
              break;
            case MOELA_INT8:
              convert(std::integral_constant<int, MOELA_INT8>{});
              break;
            case MOELA_INT6:
              convert(std::integral_constant<int, MOELA_INT6>{});
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
            const uint32_t weights =
                shared_address(s.weights) + lane % 16 * (P_STRIDE * 2) + lane / 16 * 16;
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
