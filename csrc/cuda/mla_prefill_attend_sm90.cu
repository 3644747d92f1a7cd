// Causal attention of tiles of 128 rows over a window of up-projected keys: 128 + 64 / 128, bf16
// into f32 by wgmma. The running softmax: arXiv 2205.14135; the overlap of a block's scores with
// the block before's values, and the two warpgroups' taking turns: arXiv 2407.08608.
//
// A persistent block an SM: one warp copies keys and values (two stages each), two warpgroups of 64
// rows attend. A warpgroup issues S' = Q K' of the next block, then O += P V of this one, and makes
// P' from S' while the latter runs. Every row takes its segment's blocks of 128 keys ascending; a
// block beyond its position changes none of its bits (its weights are exactly 0, its scale 1).
#include <cuda_bf16.h>

#include "cuda/mla_prefill.cuh"
#include "cuda/mla_prefill_rows_sm90.cuh"

namespace moela::cuda {

namespace {

constexpr int TILE = MLA_KEY_TILE;
constexpr int QUERIES = 2 * 3 * 64 * 128;  // bytes of both warpgroups: 3 tiles of 64 rows each
constexpr int KEYS = 3 * TILE;
constexpr int VALUES = 2 * TILE;
constexpr int STAGES = 2;
constexpr int KEYS_AT = QUERIES;
constexpr int VALUES_AT = KEYS_AT + STAGES * KEYS;
constexpr int BARRIERS = VALUES_AT + STAGES * VALUES;
constexpr int SHARED = BARRIERS + 4 * STAGES * 8 + 1024;
constexpr int THREADS = 384;

struct Args {
  MlaPrefillPass pass;
  const int32_t* n_absorbed;
  const void* q;
  int64_t q_row;  // elements from one row of q to the next
  void* out;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// A tile and head, and the pass's key blocks [begin, end) that it attends to.
struct Work {
  MlaPrefillTile tile;
  int head;
  int begin, end;
  bool first, last;  // of the tile's blocks
};

// The next of this thread block's share from i on; false: no more.
__device__ __forceinline__ bool next_work(const MlaPrefillPass& pass, int n, int& i, Work& work) {
  for (;; i++) {
    const int item = mla_prefill_share(i, n);
    if (item == -2) return false;
    if (item < 0) continue;
    work.tile = pass.tables->tiles[item / pass.heads];
    work.head = item % pass.heads;
    const int blocks = (work.tile.position + work.tile.rows - 1) / 128 + 1;
    work.begin = max(work.tile.block, pass.block);
    work.end = min(work.tile.block + blocks, pass.block + pass.blocks);
    if (work.begin >= work.end) continue;
    work.first = work.begin == work.tile.block;
    work.last = work.end == work.tile.block + blocks;
    i++;
    return true;
  }
}

// Row `row` of the tile in `out` [rows of the step, H, MLA_VALUE_WIDTH].
template <class T>
__device__ __forceinline__ T* row_of(T* out, const MlaPrefillPass& pass, const Work& work,
                                     int row) {
  return out + (int64_t{work.tile.row + row} * pass.shape.heads + pass.head + work.head) *
                   MLA_VALUE_WIDTH;
}

__device__ __forceinline__ void copy_blocks(const MlaPrefillPass& pass, int n, uint32_t base) {
  const uint32_t keys_full = base + BARRIERS, keys_empty = keys_full + STAGES * 8;
  const uint32_t values_full = keys_empty + STAGES * 8, values_empty = values_full + STAGES * 8;
  uint32_t keys = 0, values = 0;  // copies so far
  Work work{};
  const auto copy_values = [&](int block) {
    const int stage = values % STAGES;
    const char* from =
        pass.keys + (int64_t{block - pass.block} * pass.heads + work.head) * (4 * TILE) + 2 * TILE;
    if (values >= STAGES) barrier_wait(values_empty + stage * 8, (values / STAGES + 1) & 1);
    barrier_arrive_expect(values_full + stage * 8, VALUES);
    bulk_load(base + VALUES_AT + stage * VALUES, from, VALUES, values_full + stage * 8);
    values++;
  };
  for (int i = 0; next_work(pass, n, i, work);) {
    for (int block = work.begin; block < work.end; block++) {
      const int stage = keys % STAGES;
      const uint32_t to = base + KEYS_AT + stage * KEYS;
      const char* from =
          pass.keys + (int64_t{block - pass.block} * pass.heads + work.head) * (4 * TILE);
      if (keys >= STAGES) barrier_wait(keys_empty + stage * 8, (keys / STAGES + 1) & 1);
      barrier_arrive_expect(keys_full + stage * 8, KEYS);
      bulk_load(to, from, 2 * TILE, keys_full + stage * 8);
      bulk_load(to + 2 * TILE, pass.rotary + int64_t{block - pass.block} * TILE, TILE,
                keys_full + stage * 8);
      keys++;
      if (block > work.begin) copy_values(block - 1);
    }
    copy_values(work.end - 1);
  }
}

template <class Q, class Out>
__device__ __forceinline__ void attend_rows(const Args& a, int n, uint32_t base) {
  const MlaPrefillPass& pass = a.pass;
  const uint32_t keys_full = base + BARRIERS, keys_empty = keys_full + STAGES * 8;
  const uint32_t values_full = keys_empty + STAGES * 8, values_empty = values_full + STAGES * 8;
  const int half = threadIdx.x / 128 - 1, thread = threadIdx.x % 128, lane = thread % 32;
  const int row = half * 64 + thread / 32 * 16 + lane / 4;  // and row + 8
  const uint32_t queries = base + half * (QUERIES / 2);
  const float scale = pass.scale * 1.4426950408889634f;
  uint32_t keys = 0, values = 0;  // blocks so far
  const auto keys_at = [&] { return base + KEYS_AT + keys % STAGES * KEYS; };
  const auto values_at = [&] { return base + VALUES_AT + values % STAGES * VALUES; };
  const auto wait_keys = [&] { barrier_wait(keys_full + keys % STAGES * 8, keys / STAGES & 1); };
  const auto wait_values = [&] {
    barrier_wait(values_full + values % STAGES * 8, values / STAGES & 1);
  };
  const auto free_keys = [&] {
    if (lane == 0) barrier_arrive(keys_empty + keys % STAGES * 8);
    keys++;
  };
  const auto free_values = [&] {
    if (lane == 0) barrier_arrive(values_empty + values % STAGES * 8);
    values++;
  };
  // The warpgroups issue their products in turns, so that one multiplies while the other makes its
  // weights: named barriers 3 and 4, the first turn is warpgroup 0's.
  if (half == 1) named_arrive<256>(3);

  // The warpgroup's half of a tile's queries, in two parts.
  const auto load = [&](Queries<Q>& x, const Work& of, int part) {
    const Q* rows = static_cast<const Q*>(a.q) + (of.tile.row + half * 64) * a.q_row +
                    (pass.head + of.head) * MLA_QUERY_WIDTH;
    x.load(rows, a.q_row, of.tile.rows - half * 64, part, thread);
  };
  Work work, next;
  int share = 0;
  bool more = next_work(pass, n, share, work);
  if (!more) return;
  {
    Queries<Q> x, y;
    load(x, work, 0);
    load(y, work, 1);
    x.store(queries, 0, thread);
    y.store(queries, 1, thread);
  }
  fence_async_proxy();
  named_sync<128>(1 + half);
  while (more) {
    float o[64], s[64];
    uint32_t p[32];
    Softmax softmax;
    const auto state = [&](int h) {
      const int at = work.tile.row + row + h * 8 - *a.n_absorbed;
      return pass.state + (int64_t{at} * pass.heads + work.head) * MLA_STATE_WIDTH;
    };
#pragma unroll
    for (int i = 0; i < 64; i++) o[i] = 0;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      softmax.max[h] = -INFINITY, softmax.sum[h] = 0;
      if (!work.first && row + h * 8 < work.tile.rows) restore_row(state(h), o, softmax, h, lane);
    }
    // Of this thread's first row, relative to the block at hand.
    int limit = work.tile.position + row - (work.begin - work.tile.block) * 128;
    // The block has keys beyond the warpgroup's first row.
    const auto masked = [&] { return limit - (row - half * 64) < 127; };

    wait_keys();
    issue_scores(s, queries, keys_at());
    wgmma_wait<0>();
    pin(s);
    free_keys();
    softmax.step(s, scale, masked(), limit, lane);
    softmax.rescale(o);
    pack_weights(s, p);
    for (int block = work.begin + 1; block < work.end; block++) {
      limit -= 128;
      wait_keys();
      named_sync<256>(3 + half);
      issue_scores(s, queries, keys_at());
      wait_values();
      issue_values(o, p, values_at());
      named_arrive<256>(3 + 1 - half);
      wgmma_wait<1>();
      pin(s);
      free_keys();
      softmax.step(s, scale, masked(), limit, lane);
      wgmma_wait<0>();
      pin(o);
      free_values();
      softmax.rescale(o);
      pack_weights(s, p);
    }
    wait_values();
    issue_values(o, p, values_at());
    more = next_work(pass, n, share, next);
    wgmma_wait<0>();
    pin(o);
    free_values();
    if (work.last) softmax.finish();
#pragma unroll
    for (int h = 0; h < 2; h++) {
      if (row + h * 8 >= work.tile.rows) continue;
      if (work.last) {
        write_row(row_of(static_cast<Out*>(a.out), pass, work, row + h * 8), o, softmax, h, lane);
      } else {
        save_row(state(h), o, softmax, h, lane);
      }
    }
    if (more) {
      Queries<Q> x, y;
      load(x, next, 0);
      load(y, next, 1);
      // All its warps have read the queries before.
      named_sync<128>(1 + half);
      x.store(queries, 0, thread);
      y.store(queries, 1, thread);
      fence_async_proxy();
      named_sync<128>(1 + half);
      work = next;
    }
  }
}

#endif

template <class Q, class Out>
__global__ void __launch_bounds__(THREADS, 1) attend(const __grid_constant__ Args a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  MOELA_DYNAMIC_SHARED(char, memory);
  const uint32_t base = (shared_address(memory) + 1023) / 1024 * 1024;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(base + BARRIERS + i * 8, 1);
      barrier_init(base + BARRIERS + (STAGES + i) * 8, 8);
      barrier_init(base + BARRIERS + (2 * STAGES + i) * 8, 1);
      barrier_init(base + BARRIERS + (3 * STAGES + i) * 8, 8);
    }
    barrier_init_fence();
  }
  __syncthreads();
  wait_for_previous();
  allow_next();
  const int n = a.pass.tables->n_tiles * a.pass.heads;
  if (threadIdx.x < 128) {
    registers_dec<56>();
    if (threadIdx.x == 0) copy_blocks(a.pass, n, base);
  } else {
    registers_inc<224>();
    attend_rows<Q, Out>(a, n, base);
  }
#endif
}

template <class Q, class Out>
void start(const Launch& at, const Args& args) {
  check(cudaFuncSetAttribute(attend<Q, Out>, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED),
        "shared memory of mla_prefill");
  launch(at, &attend<Q, Out>, dim3(unsigned(at.sms)), dim3(THREADS), SHARED, args);
}

}  // namespace

void mla_prefill_attend_sm90(const Launch& at, const MlaPrefillPass& pass, Tensor q, Tensor out) {
  const int64_t q_row = pass.shape.heads * MLA_QUERY_WIDTH * (q.dtype == PROJECTED_BF16 ? 2 : 1);
  const Args args = {pass, &at.step.counts->n_absorbed, q.data, q_row, out.data};
  const bool f32_out = out.dtype == MOELA_F32;
  if (q.dtype == MOELA_F32) {
    f32_out ? start<float, float>(at, args) : start<float, __nv_bfloat16>(at, args);
  } else {
    f32_out ? start<__nv_bfloat16, float>(at, args) : start<__nv_bfloat16, __nv_bfloat16>(at, args);
  }
}

}  // namespace moela::cuda
