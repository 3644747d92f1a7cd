// What the parts of persistent.cu share: shared memory, and how blocks wait for one another.
#pragma once

#include "cuda/barrier.cuh"
#include "cuda/mla_decode_plan.h"
#include "cuda/persistent_exchange.cuh"
#include "cuda/route_row.cuh"
#include "cuda/row_norm.cuh"
#include "cuda/stream_types.cuh"

namespace moela::cuda::persistent {

constexpr int WARPS = 16;  // that multiply
constexpr int THREADS = 32 * WARPS;
// More warps bring weights, each to a slot of its own, and one copies cache rows and chooses
// experts.
constexpr int AUXILIARY = 128;
constexpr int SLOTS = 3;  // of the ring that weights come through, each of 16 rows of
constexpr int SLOT_BYTES = 2048;
static_assert(AUXILIARY == 32 * (SLOTS + 1), "");
// Pieces of rows lie 64 bytes further apart, against bank conflicts; whole rows are as in memory.
constexpr int SLOT_STRIDE = SLOT_BYTES + 64;
constexpr int MOST_SUMS = 192;   // groups of a phase, in one block
constexpr int MOST_GROUPS = 96;  // of a phase's input
constexpr int LAYERS = 4;        // descriptions held at a time

// From here on NORM_THREADS threads make the cache's new entry.
constexpr int ENTRY_THREAD = THREADS - NORM_THREADS;

constexpr int DN = 128, DR = 64, DV = 128, R = MLA_FAST_R, WIDTH = R + DR;
constexpr int HEADS = MLA_HEAD_TILE;
constexpr int SLICES = 8;             // of a head, in what comes before and after attention
constexpr int TILE = MLA_SHARE_TILE;  // keys
constexpr int ROW = 2 * WIDTH + 16;   // bytes of a bf16 row: 16 more, against bank conflicts
constexpr int STAGES = 2;
constexpr int MOST_PAGES = 64;
constexpr int S_STRIDE = 40, P_STRIDE = 40;  // against bank conflicts

// The products of a layer: q, kv_a, the output projection, gate and up, down.
enum Kind { Q, KV, OUTPUT, GATE_UP, DOWN, KINDS };

// kv_a and kv_b keep more bits than the rest where that matters: see projectionType() of
// src/weights/bind.ts. Its input is prepared alike.
template <int DTYPE>
constexpr int KV_B_TYPE = DTYPE == MOELA_BF16 || DTYPE == MOELA_FP8 ? MOELA_BF16 : MOELA_INT8;
template <int DTYPE>
constexpr int KV_A_TYPE = DTYPE == MOELA_INT4  ? MOELA_INT8
                          : DTYPE == MOELA_FP8 ? MOELA_BF16
                                               : DTYPE;

// A block's part of a product.
struct Part {
  int first, end;           // rows: of q and kv_a, the output, or the shared experts
  int units, known;         // the units before `known` need no choice of experts
  int groups, more_groups;  // of those units, and of the others
};

// The row's place in its cache.
struct Place {
  int position, keys, page, pool;
  int length, splits;  // of the keys: see mla_decode_plan.h
};

struct Arguments {
  Step step;
  PersistentStep model;
  PersistentScratch to;
  MlaSplits splits;
};

template <int DTYPE>
struct Shared {
  using T = StreamType<DTYPE>;
  static constexpr bool SCALED = T::SCALED;
  static constexpr int SCALES = SCALED ? SLOT_BYTES / T::GROUP_BYTES : 1;  // groups of a slot
  struct Room {
    // Before there are sums: the row that is normed.
    union {
      float sums[MOST_SUMS][STREAM_TILE];
      float row[MOST_SUMS * STREAM_TILE];
    };
    alignas(16) char x[MOST_GROUPS][STREAM_GROUP * T::X_BYTES];
    float x_scales[MOST_GROUPS];
  };

  alignas(128) char ring[SLOTS][STREAM_TILE * SLOT_STRIDE];
  uint32_t scales[SLOTS][SCALES][STREAM_TILE];
  uint64_t arrived[SLOTS], free[SLOTS];
  Arguments a;
  // Two stages of cache rows. The second is also what products need, at other times.
  alignas(128) char stage[TILE * ROW];
  union {
    char second[TILE * ROW];
    Room products;
  };
  alignas(16) char query[HEADS][ROW];            // bf16
  alignas(16) float scores[4][HEADS][S_STRIDE];  // and what the small operations need
  alignas(16) uint16_t weights[HEADS][P_STRIDE];
  float factors[HEADS];
  uint8_t codes[STAGES][TILE][2];
  alignas(16) char entry[2 * WIDTH];  // of the row, in the cache's type
  uint8_t entry_codes[2];
  alignas(16) float unpacked[WIDTH + 2];
  bool makes_entry;
  uint64_t full[STAGES], empty[STAGES];
  PersistentLayer layers[LAYERS];
  Part parts[LAYERS][KINDS];
  Place place;
  PagePool pool;
  int pages[MOST_PAGES];  // of this block's first tiles of keys
  float rope[DR];         // cosines, then sines
  float room[2][8];
  int chosen[ROUTE_MOST_CHOSEN];
  float chosen_weights[ROUTE_MOST_CHOSEN];
  float results[ROUTE_MOST_CHOSEN + 1][STREAM_TILE];
  float logits[ROUTE_MOST];
  uint32_t epoch;  // of layer 0
  int routed;      // layers whose experts have been chosen
  int described;   // layers whose descriptions are there
  int projected;   // layers whose q and kv_a this block has multiplied
  int shared;      // layers whose shared experts' results are the down projections' input
  int attended;    // layers whose keys it has attended to

  __device__ __forceinline__ char* stage_at(int i) { return i == 0 ? stage : second; }
};

// The block's shared memory. Phases are functions of their own that find it here, so that none
// has to do with the registers of the others.
template <int DTYPE>
__device__ __forceinline__ Shared<DTYPE>& shared_memory() {
  MOELA_ALIGNED_DYNAMIC_SHARED(128, char, memory);
  return *reinterpret_cast<Shared<DTYPE>*>(memory);
}

// Of the warps that multiply.
__device__ __forceinline__ void sync() { named_sync<1, THREADS>(); }

// When a block's first thread came by, for bench/cuda/persistent.cu.
#ifdef MOELA_MARKS
constexpr int MOST_MARKS = 1024;
__device__ long long marks[MOST_MARKS][132];
__device__ int marked[132];
__device__ __forceinline__ void mark() {
  if (threadIdx.x > 0) return;
  const int i = marked[blockIdx.x]++;
  if (i < MOST_MARKS) marks[i][blockIdx.x] = clock64();
}
__device__ long long other_marks[64][12][132];
__device__ __forceinline__ void mark_other(int layer, int i) {
  if (threadIdx.x % 32 == 0) other_marks[layer][i][blockIdx.x] = clock64();
}
#else
__device__ __forceinline__ void mark() {}
__device__ __forceinline__ void mark_other(int, int) {}
#endif

// Waits until another warp of the block has set a counter so far, and sees what it wrote before.
__device__ __forceinline__ void wait_until(const int* counter, int target) {
  while (__shfl_sync(~0u, *static_cast<const volatile int*>(counter), 0) < target) spin();
  __threadfence_block();
  __syncwarp();
}
// Sets such a counter, by one thread.
__device__ __forceinline__ void set_counter(int* counter, int value) {
  __threadfence_block();
  *static_cast<volatile int*>(counter) = value;
}

// Until one word of each of `count` senders is there, by all who multiply: many threads that ask
// for many words again and again would hold up those who still have to send.
template <class At>
__device__ __forceinline__ void await_senders(int count, uint32_t epoch, const At& at) {
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += THREADS) {
    float none[1];
    receive(none, epoch, [&](int) { return at(i); });
  }
  sync();
}

}  // namespace moela::cuda::persistent
