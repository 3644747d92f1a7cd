// The phases of persistent.cu around products: their inputs, and what is done with their sums.
#pragma once

#include "cuda/persistent_stream.cuh"
#include "cuda/stream_f32.cuh"

namespace moela::cuda::persistent {

// Elements of a thread's part of a row: d is at most this many times 4 THREADS.
constexpr int MOST_FOURS = 1;

#if __CUDA_ARCH__ >= 900
// Elements [i, i + 4) of the residual stream before layer 0: the token's embedding.
template <int DTYPE>
__device__ __forceinline__ float4 embedded(int i) {
  const Arguments& a = shared_memory<DTYPE>().a;
  const int64_t row = int64_t{a.step.tokens[0]} * a.model.d;
  return load4({const_cast<char*>(a.model.embedding), a.model.embedding_dtype}, row + i,
               row + a.model.d);
}

__device__ __forceinline__ float embedded_one(const Arguments& a, int i) {
  return tensor_at({const_cast<char*>(a.model.embedding), a.model.embedding_dtype},
                   int64_t{a.step.tokens[0]} * a.model.d + i);
}

// The last of the elements that block `block` sends of n, or another.
__device__ __forceinline__ int last_of_share(int n, int block) {
  const int end = static_cast<int>(static_cast<uint32_t>(n) * (block + 1) / gridDim.x);
  return end > 0 ? end - 1 : 0;
}

// The row, normed, as the products' input; and the logits of this block's experts. Sums are those
// of row_norm.cuh and stream_f32.cuh: of 256 threads.
template <int DTYPE>
__device__ __noinline__ void normed_input(int layer_index, int kind) {
  Shared<DTYPE>& s = shared_memory<DTYPE>();
  const Arguments& a = s.a;
  const PersistentLayer& layer = s.layers[layer_index % LAYERS];
  const PersistentNorm& norm = kind == Q ? layer.input_norm : layer.post_norm;
  const float* router = kind == Q ? nullptr : layer.router;
  const uint64_t* in = kind == Q ? a.to.hidden : a.to.middle;
  const uint32_t epoch = s.epoch + layer_index - (kind == Q);
  const bool embeds = kind == Q && layer_index == 0;
  const int thread = threadIdx.x, d = a.model.d, expert = blockIdx.x;
  const bool summing = thread < NORM_THREADS;
  float* row = s.products.row;
  float4 w[MOST_FOURS], v[MOST_FOURS], r[MOST_FOURS * THREADS / NORM_THREADS] = {};
#pragma unroll
  for (int i = 0; i < MOST_FOURS; i++) {
    const int at = 4 * (thread + THREADS * i);
    w[i] = load4({const_cast<char*>(norm.weight), norm.dtype}, at, d);
  }
  if (router && summing && expert < a.model.shape.experts) {
#pragma unroll
    for (int i = 0; i < MOST_FOURS * THREADS / NORM_THREADS; i++) {
      const int at = 4 * (thread + NORM_THREADS * i);
      if (at < d) r[i] = __ldg(reinterpret_cast<const float4*>(router + int64_t{expert} * d + at));
    }
  }
  if (!embeds) {
    await_senders(gridDim.x, epoch, [&](int i) { return in + last_of_share(d, i); });
  }
#pragma unroll
  for (int i = 0; i < MOST_FOURS; i++) {
    const int at = 4 * (thread + THREADS * i);
    if (at < d) {
      v[i] = embeds ? embedded<DTYPE>(at) : receive_four(in + at, epoch);
      *reinterpret_cast<float4*>(row + at) = v[i];
    }
  }
  sync();
  mark();
  if (summing) {
    float sum = 0;
#pragma unroll 1
    for (int at = 4 * thread; at < d; at += 4 * NORM_THREADS) {
      sum = add_squares(sum, *reinterpret_cast<const float4*>(row + at));
    }
    sum = warp_sum(sum);
    if (thread % 32 == 0) s.room[0][thread / 32] = sum;
  }
  sync();
  const float factor = norm_factor(s.room[0], d, norm.epsilon);
#pragma unroll
  for (int i = 0; i < MOST_FOURS; i++) {
    const int at = 4 * (thread + THREADS * i);
    // Whole warps: a group is put by all lanes.
    if (at / STREAM_GROUP * STREAM_GROUP >= d) continue;
    v[i] = at < d ? normed4(v[i], factor, w[i]) : float4{0, 0, 0, 0};
    Products<DTYPE>::put(s, at / STREAM_GROUP, v[i]);
    if (router && at < d) *reinterpret_cast<float4*>(row + at) = v[i];
  }
  if (router) {
#pragma unroll 1
    for (int e = expert; e < a.model.shape.experts; e += gridDim.x) {
      sync();
      if (summing) {
        float dot = 0;
#pragma unroll
        for (int i = 0; i < MOST_FOURS * THREADS / NORM_THREADS; i++) {
          const int at = 4 * (thread + NORM_THREADS * i);
          if (at >= d) continue;
          if (e != expert) {
            r[i] = __ldg(reinterpret_cast<const float4*>(router + int64_t{e} * d + at));
          }
          dot = f32_step(dot, r[i], *reinterpret_cast<const float4*>(row + at));
        }
        dot = warp_sum(dot);
        if (thread % 32 == 0) s.room[1][thread / 32] = dot;
      }
      sync();
      if (thread == 0) send(a.to.logits + e, f32_warps(s.room[1], 1), epoch);
    }
  }
  sync();
}

// Results of gate and up as the input of the down projections: of chosen experts by rank, then of
// the shared ones (see shared_input()), each of whole groups. What lies past a row's end is zero.
// By one warp MOST groups at most: first, first + step, ... below `groups`, those of a section of
// `to.inner` that begins with group `group0` and has rows of `each` groups and `length` elements.
// They become groups `to` and on of the products' input.
template <int DTYPE, int MOST>
__device__ __forceinline__ void put_inner(int layer_index, int first, int step, int groups, int to,
                                          int group0, int each, int length) {
  Shared<DTYPE>& s = shared_memory<DTYPE>();
  const Arguments& a = s.a;
  const int column = 4 * (threadIdx.x % 32);
  float2 v[2 * MOST];
  bool inside[MOST];
#pragma unroll
  for (int i = 0; i < MOST; i++) {
    const int group = first + i * step;
    inside[i] = group < groups && group % each * STREAM_GROUP + column < length;
  }
  receive(v, s.epoch + layer_index, [&](int i) {
    // Another word that is there, where there is none.
    const int group = inside[i / 2] ? first + i / 2 * step : 0;
    const int at = inside[i / 2] ? column + i % 2 * 2 : 0;
    return a.to.inner + (group0 + group) * STREAM_GROUP + at;
  });
#pragma unroll
  for (int i = 0; i < MOST; i++) {
    const int group = first + i * step;
    if (group >= groups) break;
    const float4 four = inside[i] ? float4{v[2 * i].x, v[2 * i].y, v[2 * i + 1].x, v[2 * i + 1].y}
                                  : float4{0, 0, 0, 0};
    Products<DTYPE>::put(s, to + group, four);
  }
}

// Of the shared experts, or of a dense layer: by one warp of `warps`.
template <int DTYPE>
__device__ __noinline__ void shared_down_input(int layer_index, int warp, int warps) {
  constexpr int AHEAD = 4;
  Shared<DTYPE>& s = shared_memory<DTYPE>();
  const PersistentLayer& layer = s.layers[layer_index % LAYERS];
  const int groups = groups_of(layer.shared), to = shared_input(s.a, layer);
#pragma unroll 1
  for (int first = warp; first < groups; first += warps * AHEAD) {
    put_inner<DTYPE, AHEAD>(layer_index, first, warps, groups, to, 0, groups,
                            static_cast<int>(layer.shared));
  }
}
// Of the chosen experts, by all who multiply.
template <int DTYPE>
__device__ __noinline__ void routed_down_input(int layer_index) {
  constexpr int AHEAD = MOST_GROUPS / WARPS;
  Shared<DTYPE>& s = shared_memory<DTYPE>();
  const Arguments& a = s.a;
  const int shared_groups = groups_of(s.layers[layer_index % LAYERS].shared);
  const int inner = a.model.intermediate, inner_groups = groups_of(inner);
  const int all = static_cast<int>(a.model.shape.top_k) * routed_units(a);
  const int groups = static_cast<int>(a.model.shape.top_k) * inner_groups;
  await_senders(min(static_cast<int>(gridDim.x), all), s.epoch + layer_index, [&](int block) {
    // Of the last unit that the block has: its last row.
    const int unit = block + (all - 1 - block) / gridDim.x * gridDim.x;
    const int rank = unit / routed_units(a);
    const int row = min((unit - rank * routed_units(a)) * GATE_UNIT + GATE_UNIT, inner) - 1;
    return a.to.inner + (shared_groups + rank * inner_groups) * STREAM_GROUP + row;
  });
  mark();
  put_inner<DTYPE, AHEAD>(layer_index, threadIdx.x / 32, WARPS, groups, 0, shared_groups,
                          inner_groups, inner);
  sync();
}

// What attention gave as the input of the output projection.
template <int DTYPE>
__device__ __noinline__ void output_input(int layer_index) {
  Shared<DTYPE>& s = shared_memory<DTYPE>();
  const int k = s.a.model.heads * DV;
  await_senders(s.a.model.heads * SLICES, s.epoch + layer_index,
                [&](int i) { return s.a.to.attended + i * STREAM_TILE + STREAM_TILE - 1; });
#pragma unroll 1
  for (int at = 4 * threadIdx.x; at < k; at += 4 * THREADS) {
    Products<DTYPE>::put(s, at / STREAM_GROUP,
                         receive_four(s.a.to.attended + at, s.epoch + layer_index));
  }
  sync();
}

// Each after the sync() that ends a product: its sums, and what is done with them.
template <int DTYPE>
__device__ __noinline__ void finish_rows(int layer_index, int kind, int first_sum) {
  Shared<DTYPE>& s = shared_memory<DTYPE>();
  const Arguments& a = s.a;
  const Part& part = s.parts[layer_index % LAYERS][kind];
  const uint32_t epoch = s.epoch + layer_index;
  uint64_t* to = kind == OUTPUT ? a.to.middle : kind == Q ? a.to.q : a.to.kv_a;
  // From the last thread on, so that q and kv_a have threads of their own.
  const int mine = kind == KV ? THREADS - 1 - static_cast<int>(threadIdx.x) : threadIdx.x;
#pragma unroll 1
  for (int i = mine; i < part.end - part.first; i += THREADS) {
    float sum = Products<DTYPE>::sum(s, first_sum + i / STREAM_TILE * part.groups, part.groups,
                                     i % STREAM_TILE);
    const int row = part.first + i;
    if (kind == OUTPUT) {
      sum = __fadd_rn(sum, layer_index == 0 ? embedded_one(a, row) : received(a.to.hidden + row));
    }
    send(to + row, sum, epoch);
  }
}
// Of units [begin, end).
template <int DTYPE>
__device__ __noinline__ void finish_gate_up(int layer_index, int begin, int end) {
  Shared<DTYPE>& s = shared_memory<DTYPE>();
  const Arguments& a = s.a;
  const Part& part = s.parts[layer_index % LAYERS][GATE_UP];
  const int groups = part.groups;
  const PersistentLayer& layer = s.layers[layer_index % LAYERS];
  uint64_t* to = a.to.inner;
  const uint32_t epoch = s.epoch + layer_index;
  const int shared_groups = groups_of(layer.shared);
  const int inner_groups = groups_of(a.model.intermediate);
#pragma unroll 1
  for (int i = threadIdx.x; i < (end - begin) * GATE_UNIT; i += THREADS) {
    const int unit = begin + i / GATE_UNIT, r = i % GATE_UNIT;
    const float gate = Products<DTYPE>::sum(s, unit * groups, groups, r);
    const float up = Products<DTYPE>::sum(s, unit * groups, groups, r + GATE_UNIT);
    int rank;
    const int row = gate_row(a, part, unit, rank) + r;
    if (rank < 0) {
      if (row < part.end) send(to + row, silu_mul(gate, up), epoch);
    } else if (row < a.model.intermediate) {
      send(to + (shared_groups + rank * inner_groups) * STREAM_GROUP + row, silu_mul(gate, up),
           epoch);
    }
  }
}
template <int DTYPE>
__device__ __noinline__ void finish_down(int layer_index) {
  Shared<DTYPE>& s = shared_memory<DTYPE>();
  const Arguments& a = s.a;
  const Part& part = s.parts[layer_index % LAYERS][DOWN];
  const PersistentLayer& layer = s.layers[layer_index % LAYERS];
  const int top_k = layer.router ? static_cast<int>(a.model.shape.top_k) : 0;
  const int shared_groups = groups_of(layer.shared);
  const int groups = groups_of(a.model.intermediate);
  const int sections = top_k + (layer.shared > 0);
#pragma unroll 1
  for (int i = threadIdx.x; i < sections * STREAM_TILE; i += THREADS) {
    const int section = i / STREAM_TILE, row = i % STREAM_TILE;
    const bool routed = section < top_k;
    s.results[section][row] = Products<DTYPE>::sum(s, routed ? shared_groups + section * groups : 0,
                                                   routed ? groups : shared_groups, row);
  }
  sync();
  const int row = part.first + static_cast<int>(threadIdx.x);
  if (row >= part.end) return;
  float sum = 0;
#pragma unroll 1
  for (int rank = 0; rank < top_k; rank++) {
    const float term = __fmul_rn(s.chosen_weights[rank], s.results[rank][threadIdx.x]);
    sum = rank == 0 ? term : __fadd_rn(sum, term);
  }
  if (layer.shared > 0) {
    const float y = s.results[top_k][threadIdx.x];
    sum = top_k > 0 ? __fadd_rn(sum, y) : y;
  }
  sum = __fadd_rn(sum, received(a.to.middle + row));
  if (layer_index + 1 < a.model.n_layers) {
    send(a.to.hidden + row, sum, s.epoch + layer_index);
  } else {
    a.model.out[row] = sum;
  }
}
#endif  // __CUDA_ARCH__ >= 900

}  // namespace moela::cuda::persistent
