// mla_decode on Hopper for r = 512, dr = 64 and many heads: tiles of 64 heads on wgmma.
//
// A block takes some pages of a row for 64 heads. A warpgroup copies pages to shared memory, two of
// them in flight, in rows of 128 bytes as wgmma reads them. Another makes S [64, 64] = q K^T and
// the running softmax, and hands P over in shared memory; then both add P V, 256 columns of O [64,
// 512] each. Results of a row's splits go to slots in memory and are merged in ascending order by a
// second launch. The order of summation is fixed by where splits are cut: see mla_decode_plan.h, or
// evenly over the blocks where rows may depend on their neighbours.
#include "cuda/mla_decode_wgmma.cuh"

namespace moela::cuda {

namespace {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
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

// Four columns of a head's result.
__device__ __forceinline__ void store_four(const MlaDecodeArgs& a, const Item& item, float* slot,
                                           int head, int column, float4 v, float inverse) {
  if (slot) {
    __stcg(reinterpret_cast<float4*>(slot + head * R + column), v);
    return;
  }
  if (item.head + head >= a.heads) return;
  tensor_store_four(a.out, (int64_t(item.row) * a.heads + item.head + head) * R + column,
                    {v.x * inverse, v.y * inverse, v.z * inverse, v.w * inverse});
}

// F32 caches, f32 arithmetic: a warp eight heads, a key at a time. Rare, so it is only short.
__device__ __noinline__ void attend_f32(const MlaDecodeArgs& a, const Item& item, float* slot) {
  const PagePool& pool = a.step.pools[item.pool];
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < HEADS / 8; i++) {
    const int head = threadIdx.x / 32 * (HEADS / 8) + i;
    if (item.head + head >= a.heads) return;
    const int64_t at = (int64_t(item.row) * a.heads + item.head + head) * WIDTH;
    float4 o[4] = {};
    float most = -INFINITY, sum = 0;
    for (int key = item.begin * KEYS; key < min(item.keys, item.end * KEYS); key++) {
      const float* row =
          reinterpret_cast<const float*>(pool.at(a.step.pages[item.page + key / KEYS], a.layer)) +
          key % KEYS * WIDTH;
      float4 x[4];
      float score = 0;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        x[j] = *reinterpret_cast<const float4*>(row + 128 * j + 4 * lane);
        const int64_t from = at + 128 * j + 4 * lane;
        score = fmaf(tensor_value(a.q, from), x[j].x, score);
        score = fmaf(tensor_value(a.q, from + 1), x[j].y, score);
        score = fmaf(tensor_value(a.q, from + 2), x[j].z, score);
        score = fmaf(tensor_value(a.q, from + 3), x[j].w, score);
      }
      score = fmaf(tensor_value(a.q, at + R + lane), row[R + lane], score);
      score = fmaf(tensor_value(a.q, at + R + 32 + lane), row[R + 32 + lane], score);
#pragma unroll
      for (int j = 16; j > 0; j /= 2) score += __shfl_xor_sync(~0u, score, j);
      score *= LOG2E;
      const float next = fmaxf(most, score);
      const float factor = power2(most - next), p = power2(score - next);
      most = next;
      sum = fmaf(sum, factor, p);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        o[j].x = fmaf(p, x[j].x, o[j].x * factor);
        o[j].y = fmaf(p, x[j].y, o[j].y * factor);
        o[j].z = fmaf(p, x[j].z, o[j].z * factor);
        o[j].w = fmaf(p, x[j].w, o[j].w * factor);
      }
    }
    for (int j = 0; j < 4; j++) {
      store_four(a, item, slot, head, 128 * j + 4 * lane, o[j], 1 / sum);
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
  // Neighbours swap pairs: an even lane gets four columns of eight j, an odd one of j + 1.
  const bool odd = t % 2;
#pragma unroll
  for (int j = 0; j < 32; j += 2) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float keep0 = odd ? o[4 * j + 4 + 2 * i] : o[4 * j + 2 * i];
      const float keep1 = odd ? o[4 * j + 5 + 2 * i] : o[4 * j + 1 + 2 * i];
      const float give0 = odd ? o[4 * j + 2 * i] : o[4 * j + 4 + 2 * i];
      const float give1 = odd ? o[4 * j + 1 + 2 * i] : o[4 * j + 5 + 2 * i];
      const float take0 = __shfl_xor_sync(~0u, give0, 1), take1 = __shfl_xor_sync(~0u, give1, 1);
      const float4 v =
          odd ? float4{take0, take1, keep0, keep1} : float4{keep0, keep1, take0, take1};
      store_four(a, item, slot, head + 8 * i, first + 8 * (j + odd) + t / 2 * 4, v,
                 i ? inverse8 : inverse);
    }
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
    wgmma_values(o, operand_descriptor(weights + 32 * k),
                 columns_descriptor(values + 2048 * k, BLOCK));
  }
  wgmma_commit();
}

// One part of S = q K^T once its columns are there, committed.
__device__ __forceinline__ void add_scores(float (&c)[32], Shared& s, const Ring& ring, int part) {
  barrier_wait(shared_address(&s.full[ring.stage][part]), ring.phase);
  fence_async_proxy();
  const uint32_t q = shared_address(s.q), keys = shared_address(s.pages[ring.stage]);
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < PART * 4; k++) {
    const uint32_t offset = (part * PART + k / 4) * BLOCK + k % 4 * 32;
    Wgmma<64>::run(c, operand_descriptor(q + offset), operand_descriptor(keys + offset));
  }
  wgmma_commit();
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
#pragma unroll
    for (int j = 0; j < 32; j++) c[j] = 0;
#pragma unroll
    for (int part = 0; part < PARTS; part++) add_scores(c, s, ring, part);
    wgmma_wait<0>();
    pin(c);
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
    fence_async_proxy();
    sync_computing<2>();
    rescale(o, factor0, factor8);
    pin(o);
    add_values(o, s, ring.stage, 0);
    // At once, so that the page after the next is on its way while the next is used.
    wgmma_wait<0>();
    pin(o);
    if (lane == 0) barrier_arrive(shared_address(&s.empty[ring.stage]));
    ring.next();
  }
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
  store_item(a, item, slot, 0, o, s);
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
    for (int part = 0; part < PARTS; part++) {
      barrier_wait(shared_address(&s.full[ring.stage][part]), ring.phase);
    }
    fence_async_proxy();
    sync_computing<2>();
    rescale(o, s.factors[head], s.factors[head + 8]);
    pin(o);
    add_values(o, s, ring.stage, 4);
    wgmma_wait<0>();
    pin(o);
    if (lane == 0) barrier_arrive(shared_address(&s.empty[ring.stage]));
    if (i + 1 < item.end) named_arrive<2 * GROUP>(3);
    ring.next();
  }
  sync_computing<4>();
  store_item(a, item, slot, 256, o, s);
}
#endif

__global__ void __launch_bounds__(THREADS, 1) attend(const __grid_constant__ MlaDecodeArgs a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  MOELA_ALIGNED_DYNAMIC_SHARED(1024, char, memory);
  Shared& s = *reinterpret_cast<Shared*>(memory);
  const int tiles = (a.heads + HEADS - 1) / HEADS;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      for (int part = 0; part < PARTS; part++) {
        barrier_init(shared_address(&s.full[i][part]), GROUP);
      }
      barrier_init(shared_address(&s.empty[i]), 8);
    }
    barrier_init_fence();
  }
  wait_for_previous();
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
        float* slot = item.slot < 0 ? nullptr : slot_at(a, item.slot, item.head / HEADS, tiles);
        if (a.step.pools[item.pool].dtype == MOELA_F32) {
          attend_f32(a, item, slot);
          continue;
        }
        load_query(a, item, s);
        if (role == 0)
          attend_left(a, item, slot, ring, s);
        else
          attend_right(a, item, slot, ring, s);
      }
      start -= items;
    }
  }
#endif
}

}  // namespace

void mla_decode_wgmma(const Launch& at, const MlaDecodeArgs& args) {
  static const bool allowed = [] {
    check(cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)),
          "mla_decode");
    return true;
  }();
  (void)allowed;
  // The merge's blocks do not fit beside these: an early start would only hold others up.
  Launch alone = at;
  alone.overlap = false;
  launch(alone, attend, dim3(at.sms), dim3(THREADS), sizeof(Shared), args);
  if (args.slots.capacity == 0) return;
  const int per_block = at.absorbed <= 8 ? 1 : 8;
  const unsigned rows = at.absorbed < 65535 ? at.absorbed : 65535;
  launch(alone, merge, dim3((args.heads + per_block - 1) / per_block, rows), dim3(MERGE_THREADS), 0,
         args);
}

}  // namespace moela::cuda
