// The stream family for one row. A block's products are a list of units: 16 rows of weights each,
// cut into steps of 4 KB (one group of 128 columns in BF16, two in FP8 and INT8, four in INT4) that
// the warps take in turn. Weights flow through a ring in shared memory in which each thread has a
// place of its own, so that the ring needs no barrier and its first rounds can be on their way
// before the previous kernel has ended. The groups' sums meet in shared memory and are added in
// ascending order there.
#pragma once

#include "cuda/fused.h"
#include "cuda/row_norm.cuh"
#include "cuda/stream_types.cuh"

namespace moela::cuda {

constexpr int ROW_WARPS = 8;
constexpr int ROW_THREADS = 32 * ROW_WARPS;
// Groups whose sums are kept at a time, if nothing else is said.
constexpr int ROW_ROUND = 96;
constexpr int ROW_PIECES = 8;  // of 16 bytes, a thread and step

// Barrier of the warps that stream alone: a kernel may have others.
__device__ __forceinline__ void row_sync() { named_sync<1, ROW_THREADS>(); }

// What a lane reads of a unit: a row for each half of the 16 (not inside: nothing, but the address
// is good), and for lanes 0 and 1 of a quad the scales of the first and second one: of group g,
// scales[index + g].
struct RowSource {
  const char* row[2];
  bool inside[2];
  int row_bytes;
  const char* scales;  // NULL: none
  int64_t scale_index;
};

// A warp's way through the list of steps.
struct RowCursor {
  int unit, step, groups;
  int base;  // groups of the units before this one
};

template <int DTYPE, int DEPTH, int ROUND = ROW_ROUND>
struct RowStream {
  using T = StreamType<DTYPE>;
  static constexpr int GROUPS = ROW_PIECES / T::PIECES;  // of a step
  static constexpr int RING_BYTES = DEPTH * ROW_PIECES * 16 * ROW_THREADS;
  static constexpr int SCALES = T::SCALED ? GROUPS * STREAM_TILE : 0;  // of a warp's step

  uint4* ring;       // [DEPTH][ROW_PIECES][ROW_THREADS]
  uint32_t* scales;  // [DEPTH][ROW_WARPS][GROUPS][16]
  float* parts;      // [ROUND][16]
  char* x;           // [groups + GROUPS - 1][128] prepared: a last step may reach beyond
  float* x_scales;   // the same

  __host__ __device__ static size_t shared_bytes(int64_t x_groups) {
    return RING_BYTES + DEPTH * ROW_WARPS * SCALES * 4 + ROUND * STREAM_TILE * 4 +
           (x_groups + GROUPS - 1) * (STREAM_GROUP * T::X_BYTES + 4);
  }
  RowStream() = default;
  __device__ RowStream(char* shared, int64_t x_groups) {
    ring = reinterpret_cast<uint4*>(shared);
    shared += RING_BYTES;
    scales = reinterpret_cast<uint32_t*>(shared);
    shared += DEPTH * ROW_WARPS * SCALES * 4;
    parts = reinterpret_cast<float*>(shared);
    shared += ROUND * STREAM_TILE * 4;
    x = shared;
    x_scales =
        reinterpret_cast<float*>(shared + (x_groups + GROUPS - 1) * STREAM_GROUP * T::X_BYTES);
  }

  RowCursor bring;   // the next step to bring
  RowSource source;  // of unit `entered`
  int entered = -1;

  template <class Provider>
  __device__ __forceinline__ static void settle(const Provider& provider, RowCursor& cursor) {
    while (cursor.unit < provider.units) {
      const int steps = (cursor.groups + GROUPS - 1) / GROUPS;
      if (cursor.step < steps) return;
      cursor.step -= steps;
      cursor.base += cursor.groups;
      cursor.groups = provider.groups(++cursor.unit);
    }
  }

  template <class Provider>
  __device__ __forceinline__ void issue(const Provider& provider, int slot) {
    const int lane = threadIdx.x % 32, t = lane % 4;
    if (entered != bring.unit) {
      entered = bring.unit;
      source = provider.enter(bring.unit, lane);
    }
    const int first = bring.step * GROUPS;
    const int begin = first * T::GROUP_BYTES + 16 * t;
    uint4* to = ring + slot * ROW_PIECES * ROW_THREADS + threadIdx.x;
    // Piece p is of group p / PIECES: its 64 bytes lie behind those of the pieces before.
    const char* from[2] = {source.row[0] + begin, source.row[1] + begin};
    const int left[2] = {source.inside[0] ? source.row_bytes - begin : 0,
                         source.inside[1] ? source.row_bytes - begin : 0};
#pragma unroll
    for (int p = 0; p < ROW_PIECES; p++) {
      const int offset = p / 2 * 64;
      copy16(to + p * ROW_THREADS, from[p % 2] + offset, min(max(left[p % 2] - offset, 0), 16));
    }
    if constexpr (T::SCALED) {
      if (t < 2) {
        uint32_t* place =
            scales + (slot * ROW_WARPS + threadIdx.x / 32) * SCALES + lane / 4 + 8 * t;
        const int64_t index = source.scale_index + first;
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
          const bool inside = source.scales && first + i < bring.groups;
          copy4(place + i * STREAM_TILE,
                source.scales + (DTYPE == MOELA_INT8 ? (index + i) / 2 : index + i) * 4,
                inside ? 4 : 0);
        }
      }
    }
    bring.step += ROW_WARPS;
    settle(provider, bring);
  }

  // All steps. Weights of units below `known` are on their way before middle(), which waits for the
  // previous kernel and prepares the input. After each `round` units, finish(first unit, end) on
  // all threads finds the sums of its groups in parts, from its first unit's on.
  //
  // There is one place for each part of the work, and little is unrolled: a kernel's code is cold
  // whenever it starts, and reading it takes longer than running it.
  template <class Provider, class Middle, class Finish>
  __device__ __forceinline__ void run(const Provider& provider, int known, int round,
                                      const Middle& middle, const Finish& finish) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int row_parity = provider.row_parity(lane);
    bring = {0, warp, provider.groups(0), 0};
    settle(provider, bring);
    RowCursor at = bring;
    bool prepared = false;
    int slot = 0, round_base = 0, first = 0, end = min(round, provider.units);
    int fill = DEPTH;  // steps to bring before the first is used
    while (true) {
      if (!prepared && (fill == 0 || bring.unit >= known)) {
        prepared = true;
        middle();
      }
      if (fill == 0) {
        while (at.unit >=
               end) {  // once: a round has at least one step for some warp, maybe not ours
          row_sync();
          finish(first, end);
          if (end >= provider.units) return;
          row_sync();
          round_base += provider.base(end) - provider.base(first);
          first = end;
          end = min(end + round, provider.units);
        }
        wait_copies<DEPTH - 1>();
        __syncwarp();
      }
      uint4 w[ROW_PIECES];
      uint32_t scale[GROUPS], scale8[GROUPS];
      const uint4* from = ring + slot * ROW_PIECES * ROW_THREADS + threadIdx.x;
#pragma unroll
      for (int p = 0; p < ROW_PIECES; p++) w[p] = from[p * ROW_THREADS];
      if constexpr (T::SCALED) {
        const uint32_t* place = scales + (slot * ROW_WARPS + warp) * SCALES + g;
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
          scale[i] = place[i * STREAM_TILE];
          scale8[i] = place[i * STREAM_TILE + 8];
        }
        __syncwarp();
      }
      if (bring.unit < provider.units) issue(provider, slot);
      commit_copies();
      slot = slot + 1 == DEPTH ? 0 : slot + 1;
      if (fill > 0) {
        fill--;
        continue;
      }

      const int group = at.step * GROUPS;
      const int x_group = provider.x_base(at.base) + group;
      const char* x_from = x + x_group * STREAM_GROUP * T::X_BYTES;
      float* to = parts + (at.base - round_base + group) * STREAM_TILE + g;
      const int odd = (row_parity & at.groups) ^ group;
#pragma unroll
      for (int i = 0; i < GROUPS; i++) {
        uint4 b[T::B_PIECES], a[T::PIECES];
#pragma unroll
        for (int j = 0; j < T::PIECES; j++) a[j] = w[i * T::PIECES + j];
#pragma unroll
        for (int j = 0; j < T::B_PIECES; j++) {
          b[j] = uint4{0, 0, 0, 0};
          if (lane < 4) {
            b[j] = *reinterpret_cast<const uint4*>(x_from + i * STREAM_GROUP * T::X_BYTES +
                                                   T::b_offset(j, t));
          }
        }
        typename T::Sum c[4] = {0, 0, 0, 0};
#pragma unroll
        for (int part = 0; part < T::PARTS; part++) {
          T::product(part, c, a, b, scale[i], scale8[i], t);
        }
        float low = static_cast<float>(c[0]), high = static_cast<float>(c[2]);
        if constexpr (T::SCALED) {
          float factor = T::scale(scale[i], (odd + i) & 1);
          float factor8 = T::scale(scale8[i], (odd + i) & 1);
          if constexpr (T::INTEGER) {
            const float x_scale = x_scales[x_group + i];
            factor = __fmul_rn(x_scale, factor);
            factor8 = __fmul_rn(x_scale, factor8);
          }
          low = __fmul_rn(low, factor);
          high = __fmul_rn(high, factor8);
        }
        if (t == 0 && group + i < at.groups) {
          to[i * STREAM_TILE] = low;
          to[i * STREAM_TILE + 8] = high;
        }
      }
      at.step += ROW_WARPS;
      settle(provider, at);
    }
  }

  // Sum of `count` groups from `group` (of the round) on, for one of 16 rows.
  __device__ __forceinline__ float sum(int group, int count, int row) const {
    float total = 0;
    const float* at = parts + group * STREAM_TILE + row;
#pragma unroll 4
    for (int i = 0; i < count; i++) total = __fadd_rn(total, at[i * STREAM_TILE]);
    return total;
  }

  // This lane's four elements of a group: rounded to bf16, or quantized with the rest of the warp.
  __device__ __forceinline__ void put(int group, const float4& v) {
    const int lane = threadIdx.x % 32;
    char* to = x + (group * STREAM_GROUP + 4 * lane) * T::X_BYTES;
    if constexpr (T::INTEGER) {
      float scale;
      const uint32_t packed = quantize_group(v, scale);
      *reinterpret_cast<uint32_t*>(to) = packed;
      if (lane == 0) x_scales[group] = scale;
    } else {
      *reinterpret_cast<uint2*>(to) = uint2{bf16_pair(v.x, v.y), bf16_pair(v.z, v.w)};
    }
  }
};

// The row that a kernel's products share, normed on its way or not. Its norm's weights are read
// before the previous kernel ends.
struct RowInput {
  Tensor in;         // [k]
  const char* norm;  // [k], or NULL
  int32_t norm_dtype;
  float epsilon;
  int32_t k;
};
constexpr int ROW_KEPT = 2;  // float4 of a thread that are kept between the norm's two passes

struct RowNormWeights {
  float4 kept[ROW_KEPT];

  __device__ __forceinline__ explicit RowNormWeights(const RowInput& input) {
    const Tensor norm{const_cast<char*>(input.norm), input.norm_dtype};
#pragma unroll
    for (int i = 0; i < ROW_KEPT; i++) {
      if (input.norm) kept[i] = load4(norm, 4 * threadIdx.x + 4 * ROW_THREADS * i, input.k);
    }
  }
};

// What the row is multiplied by when it is normed, from this thread's first elements.
__device__ __forceinline__ float row_factor(const RowInput& input, const float4 (&kept)[ROW_KEPT],
                                            float* room) {
  if (!input.norm) return 1;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < ROW_KEPT; i++) sum = add_squares(sum, kept[i]);
#pragma unroll 1
  for (int at = 4 * threadIdx.x + 4 * ROW_THREADS * ROW_KEPT; at < input.k; at += 4 * ROW_THREADS) {
    sum = add_squares(sum, load4(input.in, at, input.k));
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = sum;
  row_sync();
  return norm_factor(room, input.k, input.epsilon);
}

// Element 4 thread + 1024 i of the row belongs to thread `thread` in the order of row_norm.cuh, and
// to the same warp's group in put().
template <class Stream>
__device__ __forceinline__ void prepare_row(Stream& stream, const RowInput& input,
                                            const RowNormWeights& weights, float* room) {
  const int thread = threadIdx.x, k = input.k;
  const int chunks = (k + 4 * ROW_THREADS - 1) / (4 * ROW_THREADS);
  const int groups = (k + STREAM_GROUP - 1) / STREAM_GROUP;
  const Tensor norm{const_cast<char*>(input.norm), input.norm_dtype};
  float4 kept[ROW_KEPT];
#pragma unroll
  for (int i = 0; i < ROW_KEPT; i++) {
    kept[i] = load4(input.in, 4 * thread + 4 * ROW_THREADS * i, k);
  }
  const float factor = row_factor(input, kept, room);
#pragma unroll 1
  for (int i = 0; i < chunks; i++) {
    const int at = 4 * thread + 4 * ROW_THREADS * i;
    float4 v = i == 0 ? kept[0] : kept[1], w = i == 0 ? weights.kept[0] : weights.kept[1];
    if (i >= ROW_KEPT) {
      v = load4(input.in, at, k);
      if (input.norm) w = load4(norm, at, k);
    }
    const int group = thread / 32 + ROW_WARPS * i;
    if (input.norm) v = normed4(v, factor, w);
    if (group < groups) stream.put(group, v);
  }
}

inline RowInput row_input(const DecodeInput& input, int64_t k) {
  return {input.in, input.norm ? input.norm->data : nullptr, input.norm ? input.norm->dtype : 0,
          input.epsilon, static_cast<int32_t>(k)};
}

}  // namespace moela::cuda
