// The stream family for one row: a block's products as a list of steps, each one group of 128
// columns for 16 rows of weights. The warps take steps in turn. Weights flow through a ring in
// shared memory in which each thread has a place of its own, so that the ring needs no barrier and
// its first rounds can be on their way before the previous kernel has ended. The groups' sums meet
// in shared memory and are added in ascending order there.
#pragma once

#include "cuda/row_norm.cuh"
#include "cuda/stream_types.cuh"

namespace moela::cuda {

constexpr int ROW_WARPS = 8;
constexpr int ROW_THREADS = 32 * ROW_WARPS;
// Steps whose sums are kept at a time.
constexpr int ROW_ROUND = 96;
// Of the ring. All of a block's shared memory is to be at most half of what a multiprocessor has, so
// that the next kernel's blocks fit beside this one's.
constexpr int row_ring_kb(int dtype, bool wide_input) {
  return wide_input ? 64 : dtype == MOELA_BF16 ? 96 : 80;
}

// What a step reads. For this lane: a row each of its two halves (NULL: none), where the four bytes
// with the scale of row `lane % 4` (0: low, 1: high) begin, and their places among the scales.
struct RowStep {
  const char* row[2];
  int64_t bytes;     // of a row
  const char* scale; // lanes 0 and 1 of a quad; NULL: none
  int64_t scale_index[2];
  int group;         // of the row
  int x_group;       // of the prepared input
};

// WIDE_INPUT: the prepared input is tens of kilobytes.
template <int DTYPE, bool WIDE_INPUT = false>
struct RowStream {
  using T = StreamType<DTYPE>;
  static constexpr int DEPTH =
      row_ring_kb(DTYPE, WIDE_INPUT) * 1024 / (T::PIECES * 16 * ROW_THREADS);
  static constexpr int RING_BYTES = DEPTH * T::PIECES * 16 * ROW_THREADS;

  uint4* ring;       // [DEPTH][PIECES][ROW_THREADS]
  uint32_t* scales;  // [DEPTH][ROW_WARPS][16]
  float* parts;      // [ROW_ROUND][16]
  char* x;           // [groups][128] prepared
  float* x_scales;   // [groups]

  static constexpr size_t SCALE_BYTES = T::SCALED ? DEPTH * ROW_WARPS * STREAM_TILE * 4 : 0;
  __host__ __device__ static size_t shared_bytes(int64_t x_groups) {
    return RING_BYTES + SCALE_BYTES + ROW_ROUND * STREAM_TILE * 4 +
           x_groups * (STREAM_GROUP * T::X_BYTES + 4);
  }
  __device__ RowStream(char* shared, int64_t x_groups) {
    ring = reinterpret_cast<uint4*>(shared);
    shared += RING_BYTES;
    scales = reinterpret_cast<uint32_t*>(shared);
    shared += SCALE_BYTES;
    parts = reinterpret_cast<float*>(shared);
    shared += ROW_ROUND * STREAM_TILE * 4;
    x = shared;
    x_scales = reinterpret_cast<float*>(shared + x_groups * STREAM_GROUP * T::X_BYTES);
  }

  template <class Provider>
  __device__ __forceinline__ void issue(const Provider& provider, int step, int slot) {
    const int lane = threadIdx.x % 32, t = lane % 4;
    const RowStep at = provider.locate(step, lane);
    const int64_t begin = static_cast<int64_t>(at.group) * T::GROUP_BYTES + 16 * t;
#pragma unroll
    for (int p = 0; p < T::PIECES; p++) {
      const char* row = at.row[p % 2];
      const int64_t offset = begin + p / 2 * 64;
      const int64_t left = row ? at.bytes - offset : 0;
      const int bytes = left >= 16 ? 16 : left > 0 ? static_cast<int>(left) : 0;
      copy16(ring + (slot * T::PIECES + p) * ROW_THREADS + threadIdx.x,
             bytes ? row + offset : static_cast<const char*>(provider.any()), bytes);
    }
    if (T::SCALED && t < 2) {
      copy4(scales + (slot * ROW_WARPS + threadIdx.x / 32) * STREAM_TILE + lane / 4 + 8 * t,
            at.scale ? at.scale : static_cast<const char*>(provider.any()), at.scale ? 4 : 0);
    }
  }

  int ready = 0;  // steps of this warp on their way

  // Starts this warp's first steps among [0, known). May be called again with more.
  template <class Provider>
  __device__ __forceinline__ void start(const Provider& provider, int known) {
    const int warp = threadIdx.x / 32;
    while (ready < DEPTH && warp + ready * ROW_WARPS < known) {
      issue(provider, warp + ready * ROW_WARPS, ready);
      commit_copies();
      ready++;
    }
  }

  // All steps, `round` at a time: after each round finish(first step, end) on all threads finds the
  // steps' sums in parts[step - first][16].
  template <class Provider, class Finish>
  __device__ __forceinline__ void run(const Provider& provider, int total, int round,
                                      const Finish& finish) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    start(provider, total);
    for (; ready < DEPTH; ready++) commit_copies();
    int slot = 0, step = warp;
    for (int first = 0; first < total; first += round) {
      const int end = min(first + round, total);
      for (; step < end; step += ROW_WARPS) {
        wait_copies<DEPTH - 1>();
        __syncwarp();
        uint4 a[T::PIECES];
#pragma unroll
        for (int p = 0; p < T::PIECES; p++) {
          a[p] = ring[(slot * T::PIECES + p) * ROW_THREADS + threadIdx.x];
        }
        uint32_t scale = 0, scale8 = 0;
        if constexpr (T::SCALED) {
          const uint32_t* at = scales + (slot * ROW_WARPS + warp) * STREAM_TILE;
          scale = at[g];
          scale8 = at[g + 8];
          __syncwarp();
        }
        const RowStep at = provider.locate(step, lane);
        uint4 b[T::B_PIECES];
#pragma unroll
        for (int i = 0; i < T::B_PIECES; i++) {
          b[i] = lane < 4 ? *reinterpret_cast<const uint4*>(
                                x + static_cast<int64_t>(at.x_group) * STREAM_GROUP * T::X_BYTES +
                                T::b_offset(i, t))
                          : uint4{0, 0, 0, 0};
        }
        const int next = step + DEPTH * ROW_WARPS;
        if (next < total) issue(provider, next, slot);
        commit_copies();
        slot = slot + 1 == DEPTH ? 0 : slot + 1;

        typename T::Sum c[4] = {0, 0, 0, 0};
        T::product(c, a, b, scale, scale8, t);
        if (t == 0) {
          float low = static_cast<float>(c[0]), high = static_cast<float>(c[2]);
          if constexpr (T::SCALED) {
            float factor = T::scale(scale, at.scale_index[0]);
            float factor8 = T::scale(scale8, at.scale_index[1]);
            if constexpr (T::INTEGER) {
              const float x_scale = x_scales[at.x_group];
              factor = __fmul_rn(x_scale, factor);
              factor8 = __fmul_rn(x_scale, factor8);
            }
            low = __fmul_rn(low, factor);
            high = __fmul_rn(high, factor8);
          }
          parts[(step - first) * STREAM_TILE + g] = low;
          parts[(step - first) * STREAM_TILE + g + 8] = high;
        }
      }
      __syncthreads();
      finish(first, end);
      if (end < total) __syncthreads();
    }
  }

  // Sum of `count` consecutive steps' parts from `step` (within the round) for one of 16 rows.
  __device__ __forceinline__ float sum(int step, int count, int row) const {
    float total = 0;
    const float* at = parts + step * STREAM_TILE + row;
#pragma unroll 4
    for (int i = 0; i < count; i++) total = __fadd_rn(total, at[i * STREAM_TILE]);
    return total;
  }

  // A row of k elements prepared into x from group `x_group` on: rounded to bf16, or quantized by
  // group. load(i): element i. All threads.
  template <class Load>
  __device__ __forceinline__ void prepare(int x_group, int64_t k, const Load& load) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int groups = static_cast<int>(stream_groups(k));
    for (int g = warp; g < groups; g += ROW_WARPS) {
      const int64_t i = static_cast<int64_t>(g) * STREAM_GROUP + 4 * lane;
      float v[4];
#pragma unroll
      for (int j = 0; j < 4; j++) v[j] = i + j < k ? load(i + j) : 0;
      char* to = x + (static_cast<int64_t>(x_group + g) * STREAM_GROUP + 4 * lane) * T::X_BYTES;
      if constexpr (T::INTEGER) {
        float largest = fmaxf(fmaxf(fabsf(v[0]), fabsf(v[1])), fmaxf(fabsf(v[2]), fabsf(v[3])));
#pragma unroll
        for (int s = 16; s > 0; s /= 2) {
          largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, s));
        }
        const float inverse = largest > 0 ? __fdiv_rn(127.0f, largest) : 0;
        uint32_t packed = 0;
#pragma unroll
        for (int j = 0; j < 4; j++) {
          packed |= (static_cast<uint32_t>(__float2int_rn(__fmul_rn(v[j], inverse))) & 255) << 8 * j;
        }
        *reinterpret_cast<uint32_t*>(to) = packed;
        if (lane == 0) x_scales[x_group + g] = __fdiv_rn(largest, 127.0f);
      } else {
        *reinterpret_cast<uint2*>(to) = uint2{bf16_pair(v[0], v[1]), bf16_pair(v[2], v[3])};
      }
    }
  }
};

__device__ __forceinline__ float tensor_at(const Tensor& in, int64_t i) {
  if (in.dtype == MOELA_F32) return reinterpret_cast<const float*>(in.data)[i];
  return bf16_value(reinterpret_cast<const uint16_t*>(in.data)[i]);
}

__device__ __forceinline__ float silu_mul(float gate, float up) {
  return __fmul_rn(__fdiv_rn(gate, 1.0f + expf(-gate)), up);
}

}  // namespace moela::cuda
