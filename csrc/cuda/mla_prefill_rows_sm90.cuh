// What a warpgroup of mla_prefill_attend_sm90.cu does with its 64 rows: their queries, the products
// with a block of 128 keys, the running softmax.
#pragma once

#include "cuda/barrier.cuh"
#include "cuda/stream_types.cuh"
#include "cuda/wgmma_mma.cuh"

namespace moela::cuda {

constexpr int MLA_KEY_TILE = 128 * 128;  // bytes of a tile of 128 keys and 64 columns
constexpr int MLA_QUERY_WIDTH = 192, MLA_VALUE_WIDTH = 128;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// A thread's part of 32 of 64 rows of q, on its way from global to shared memory: 6 pieces of 8.
template <class Q>
struct Queries {
  static constexpr int PIECES = 6;
  static constexpr int WORDS = 8 * sizeof(Q) / 4;
  uint32_t x[PIECES][WORDS];

  // Volatile, so that it stays where the registers for it are free.
  __device__ __forceinline__ static void load_pieces(const Q* from, uint32_t (&to)[WORDS]) {
#pragma unroll
    for (int j = 0; j < WORDS; j += 4) {
      load16_in_place(reinterpret_cast<uint32_t (&)[4]>(to[j]),
                      reinterpret_cast<const uint32_t*>(from) + j);
    }
  }

  // From `q`, rows `stride` elements apart; from `rows` on they are zero.
  __device__ __forceinline__ void load(const Q* q, int64_t stride, int rows, int part, int thread) {
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
      const int piece = (part * PIECES + i) * 128 + thread;
      const int row = piece / 24, col = piece % 24 * 8;
      if (row < rows) {
        load_pieces(q + row * stride + col, x[i]);
      } else {
#pragma unroll
        for (int j = 0; j < WORDS; j++) x[i][j] = 0;
      }
    }
  }

  __device__ __forceinline__ void store(uint32_t to, int part, int thread) const {
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
      const int piece = (part * PIECES + i) * 128 + thread, row = piece / 24, col = piece % 24;
      const uint32_t at = to + col / 8 * 8192 + row * 128 + ((col % 8) ^ (row % 8)) * 16;
      uint32_t y[4];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        y[j] = sizeof(Q) == 2 ? x[i][j]
                              : bf16_pair(__uint_as_float(x[i][2 * j % WORDS]),
                                          __uint_as_float(x[i][(2 * j + 1) % WORDS]));
      }
      store_shared(at, uint4{y[0], y[1], y[2], y[3]});
    }
  }
};

// The products take addresses in shared memory; each is committed as a group of its own.

// s = Q K^T of 64 rows and 128 keys.
__device__ __forceinline__ void issue_scores(float (&s)[64], uint32_t q, uint32_t keys) {
  const uint64_t a = operand_descriptor(q), b = operand_descriptor(keys);
  pin(s);
  wgmma_begin();
  wgmma_first(s, a, b);
#pragma unroll
  for (int i = 1; i < 12; i++) {
    Wgmma<128>::run(s, a + i / 4 * (8192 >> 4) + i % 4 * 2,
                    b + i / 4 * (MLA_KEY_TILE >> 4) + i % 4 * 2);
  }
  wgmma_commit();
}

// o += P V.
__device__ __forceinline__ void issue_values(float (&o)[64], const uint32_t (&p)[32],
                                             uint32_t values) {
  const uint64_t b = columns_descriptor(values, MLA_KEY_TILE);
  pin(o);
  wgmma_begin();
#pragma unroll
  for (int i = 0; i < 8; i++) wgmma_columns(o, p + 4 * i, b + i * (2048 >> 4));
  wgmma_commit();
}

// A thread's two rows: lane / 4 of its warp's 16, and 8 below.
struct Softmax {
  float max[2], sum[2];  // sum: of this thread's columns
  float shrink[2];       // what o is to be multiplied by

  // s becomes its weights. Masks keys beyond `limit`, relative to the block, for the first row.
  __device__ __forceinline__ void step(float (&s)[64], float scale, bool masked, int limit,
                                       int lane) {
    if (masked) {
#pragma unroll
      for (int i = 0; i < 64; i++) {
        const int col = i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (col > limit + (i / 2 % 2) * 8) s[i] = -INFINITY;
      }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float most = max[h];
#pragma unroll
      for (int i = 0; i < 64; i++) {
        if (i / 2 % 2 == h) most = fmaxf(most, s[i]);
      }
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      shrink[h] = power2((max[h] - most) * scale);
      max[h] = most;
      const float offset = most * scale;
      float total = 0;
#pragma unroll
      for (int i = 0; i < 64; i++) {
        if (i / 2 % 2 != h) continue;
        s[i] = power2(fmaf(s[i], scale, -offset));
        total += s[i];
      }
      sum[h] = fmaf(sum[h], shrink[h], total);
    }
  }

  // Before write_row: the sum of all columns, from the four threads of a row.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
      sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
    }
  }

  __device__ __forceinline__ void rescale(float (&o)[64]) const {
#pragma unroll
    for (int i = 0; i < 64; i++) o[i] *= shrink[i / 2 % 2];
  }
};

__device__ __forceinline__ void pack_weights(const float (&s)[64], uint32_t (&p)[32]) {
#pragma unroll
  for (int i = 0; i < 32; i++) p[i] = bf16_pair(s[2 * i], s[2 * i + 1]);
}

// Between windows a row keeps o, its max, and the sums of the four threads that share it.
constexpr int MLA_STATE_WIDTH = MLA_VALUE_WIDTH + 8;

__device__ __forceinline__ void save_row(float* state, const float (&o)[64], const Softmax& softmax,
                                         int h, int lane) {
  if (lane % 4 == 0) state[MLA_VALUE_WIDTH] = softmax.max[h];
  state[MLA_VALUE_WIDTH + 4 + lane % 4] = softmax.sum[h];
#pragma unroll
  for (int i = 0; i < 16; i++) {
    reinterpret_cast<float2*>(state)[i * 4 + lane % 4] =
        make_float2(o[4 * i + 2 * h], o[4 * i + 2 * h + 1]);
  }
}

__device__ __forceinline__ void restore_row(const float* state, float (&o)[64], Softmax& softmax,
                                            int h, int lane) {
  softmax.max[h] = state[MLA_VALUE_WIDTH];
  softmax.sum[h] = state[MLA_VALUE_WIDTH + 4 + lane % 4];
#pragma unroll
  for (int i = 0; i < 16; i++) {
    const float2 x = reinterpret_cast<const float2*>(state)[i * 4 + lane % 4];
    o[4 * i + 2 * h] = x.x, o[4 * i + 2 * h + 1] = x.y;
  }
}

// out [128] = o / sum.
template <class Out>
__device__ __forceinline__ void write_row(Out* out, const float (&o)[64], const Softmax& softmax,
                                          int h, int lane) {
  const float inverse = 1 / softmax.sum[h];
#pragma unroll
  for (int i = 0; i < 16; i++) {
    const float x = o[4 * i + 2 * h] * inverse, y = o[4 * i + 2 * h + 1] * inverse;
    if constexpr (sizeof(Out) == 4) {
      reinterpret_cast<float2*>(out)[i * 4 + lane % 4] = make_float2(x, y);
    } else {
      reinterpret_cast<uint32_t*>(out)[i * 4 + lane % 4] = bf16_pair(x, y);
    }
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace moela::cuda
