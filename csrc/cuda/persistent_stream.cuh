// The products of persistent.cu: one stream of weights through all layers.
//
// A block's products are units of 16 rows of weights. One warp brings them, a kilobyte of each row
// at a time, into a ring of slots in shared memory, whichever product or layer comes next, so that
// memory is busy while blocks wait for one another; only the experts of a layer are not known
// before they are chosen. The copy engine does it: requests of the ordinary path would hold up all
// loads behind them. Groups of 128 columns are multiplied by the other warps in turn.
//
// Sums are those of stream_types.cuh, bit for bit.
#pragma once

#include "cuda/persistent_parts.cuh"
#include "cuda/ring.cuh"

namespace moela::cuda::persistent {

// Experts whose down projections are asked for, to the second-level cache, when gate and up are
// done.
constexpr int AHEAD_EXPERTS = 1;
// Cycles a byte of a row between units of shared experts that are asked for early: all at once they
// would hold up what blocks say to one another.
constexpr float PACE = 0.8f;

using Turn = RingPlace<SLOTS>;  // where the stream is in the ring

// What a warp that multiplies keeps between products.
struct Consumer {
  Turn turn;
  int warp = 0;  // that takes the next group
};

#if __CUDA_ARCH__ >= 900
template <int DTYPE>
struct Products {
  using Block = Shared<DTYPE>;
  // Of the weights in q, the output, gate, up and down; and in kv_a.
  template <int KIND_DTYPE>
  static constexpr int SLOT_GROUPS = SLOT_BYTES / StreamType<KIND_DTYPE>::GROUP_BYTES;
  static constexpr int KV_A = KV_A_TYPE<DTYPE>;

  // A lane's row of a unit: lanes l and l + 16 have row l.
  struct Source {
    const char* row;
    const char* scales;  // of the row's group 0: at 2 bytes an index in INT8, else 4
    int64_t scale_index;
    bool inside;
    int row_bytes;
  };
  template <int TYPE>
  __device__ __forceinline__ static Source enter(const Arguments& a, const Block& s, int layer,
                                                 int kind, int unit) {
    const PersistentLayer& l = s.layers[layer % LAYERS];
    const Part& part = s.parts[layer % LAYERS][kind];
    const int r = threadIdx.x % STREAM_TILE;
    const bool routed = unit >= part.known;
    int row, rank = unit - part.known;
    PersistentMatrix m;
    int64_t k = a.model.d, part_bytes = a.model.gate_part, scale_bytes = a.model.gate_scale_part;
    int end = part.end;
    if (kind == GATE_UP) {
      row = gate_row(a, part, unit, rank) + r % GATE_UNIT;
      m = r < GATE_UNIT ? (routed ? l.gate : l.shared_gate) : (routed ? l.up : l.shared_up);
      if (routed) end = a.model.intermediate;
    } else if (kind == DOWN) {
      row = part.first + r;
      m = routed ? l.down : l.shared_down;
      k = routed ? a.model.intermediate : l.shared;
      part_bytes = a.model.down_part;
      scale_bytes = a.model.down_scale_part;
    } else {
      row = part.first + unit * STREAM_TILE + r;
      m = kind == Q ? l.q : kind == KV ? l.kv_a : l.o;
      if (kind == OUTPUT) k = a.model.heads * DV;
    }
    const int64_t expert = routed && kind >= GATE_UP ? s.chosen[rank] : 0;
    Source to;
    to.inside = row < end;
    to.row_bytes = static_cast<int>(stream_row_bytes<TYPE>(k));
    to.row = m.data + expert * part_bytes + (to.inside ? int64_t{row} * to.row_bytes : 0);
    to.scales = m.scales + expert * scale_bytes;
    to.scale_index = int64_t{TYPE == MOELA_FP8 ? row / 128 : row} * groups_of(k);
    return to;
  }

  __device__ __forceinline__ static const char* shuffled(const char* pointer, int lane) {
    return reinterpret_cast<const char*>(
        __shfl_sync(~0u, reinterpret_cast<unsigned long long>(pointer), lane));
  }

  // A warp that brings: one unit.
  template <int TYPE>
  __device__ __noinline__ static Turn bring(int layer, int kind, int unit, int groups, Turn turn) {
    Block& s = shared_memory<DTYPE>();
    const Arguments& a = s.a;
    using T = StreamType<TYPE>;
    const int lane = threadIdx.x % 32, r = lane % STREAM_TILE;
    // A slot is filled by one warp: what is done for each takes longer than a copy.
    const int me = static_cast<int>(threadIdx.x - THREADS) / 32;
    if (groups <= SLOT_GROUPS<TYPE> && turn.stage != me) {
      turn.next();
      return turn;
    }
    // Weights are read once a step: what blocks hand to one another, and what is asked for ahead,
    // is to stay in the second-level cache.
    const uint64_t policy = once_policy();
    const Source from = enter<TYPE>(a, s, layer, kind, unit);
    const int rows = __popc(__ballot_sync(~0u, from.inside) & 0xffff);
    // Rows that fit whole lie as in memory: a unit is one copy, or one of gate and one of up.
    const bool whole = from.row_bytes <= SLOT_BYTES;
#pragma unroll 1
    for (int first = 0; first < groups; first += SLOT_GROUPS<TYPE>) {
      if (turn.stage != me) {
        turn.next();
        continue;
      }
      const int begin = first * T::GROUP_BYTES;
      const int bytes = min(SLOT_BYTES, from.row_bytes - begin);
      const uint32_t full = shared_address(&s.arrived[turn.stage]);
      const uint32_t to = shared_address(s.ring[turn.stage]);
      barrier_wait(shared_address(&s.free[turn.stage]), turn.phase ^ 1);
      if (lane == 0) barrier_arrive_expect(full, rows * bytes);
      __syncwarp();
      // One lane asks: the instruction takes one address at a time in any case.
      if (whole) {
        const int parts = kind == GATE_UP ? 2 : 1, each = rows / parts;
#pragma unroll 1
        for (int part = 0; part < parts; part++) {
          const char* row = shuffled(from.row, part * GATE_UNIT);
          if (lane == 0 && each > 0) {
            bulk_load_once(to + part * GATE_UNIT * bytes, row, each * bytes, full, policy);
          }
        }
      } else {
        const uint32_t inside = __ballot_sync(~0u, from.inside);
#pragma unroll 4
        for (int i = 0; i < STREAM_TILE; i++) {
          const char* row = shuffled(from.row, i);
          if (lane == 0 && inside >> i & 1)
            bulk_load_once(to + i * SLOT_STRIDE, row + begin, bytes, full, policy);
        }
      }
      if constexpr (Block::SCALED) {
        if constexpr (T::SCALED) {
          const int count = min(SLOT_GROUPS<TYPE>, groups - first);
          constexpr int SHARE = TYPE == MOELA_INT8 ? 2 : 1;  // scales in four bytes
          const int64_t index = from.scale_index + first;
          const char* scales = from.scales + index / SHARE * 4;
          const int odd = static_cast<int>(index % SHARE);
#pragma unroll 4
          for (int i = lane / STREAM_TILE; i < count; i += 2) {
            copy4(&s.scales[turn.stage][i][r], scales + (odd + i) / SHARE * 4, from.inside ? 4 : 0);
          }
        }
        barrier_arrive_copies(full);
      }
      turn.next();
    }
    return turn;
  }

  // A warp that brings: its part of some units of a product, to the second-level cache.
  __device__ __noinline__ static void prefetch(int layer, int kind, int first, int end) {
    Block& s = shared_memory<DTYPE>();
    const Part& part = s.parts[layer % LAYERS][kind];
#pragma unroll 1
    for (int unit = first; unit < min(end, part.units); unit++) {
      const Source from = enter<DTYPE>(s.a, s, layer, kind, unit);
      const int lane = threadIdx.x % 32, me = static_cast<int>(threadIdx.x - THREADS) / 32;
      if (lane < STREAM_TILE && lane % SLOTS == me && from.inside) {
        bulk_prefetch(from.row, from.row_bytes);
      }
      if (kind == GATE_UP && unit + 1 < end) {
        pause_for(static_cast<int>(PACE * from.row_bytes));
      }
    }
  }

  // What absorb() and expand() of this block read of kv_b_proj, to the same: each lane a line.
  __device__ __forceinline__ static void prefetch_kv_b(int layer) {
    Block& s = shared_memory<DTYPE>();
    const char* data = s.layers[layer % LAYERS].kv_b.data;
    const int unit = blockIdx.x, head = unit / SLICES, slice = unit % SLICES;
    constexpr int BYTES = KV_B_TYPE<DTYPE> == MOELA_BF16 ? 2 : 1, LINES = DN / STREAM_TILE;
    if (unit >= s.a.model.heads * SLICES) return;
    for (int i = threadIdx.x - THREADS; i < 2 * DN; i += 32 * SLOTS) {
      const int row = i < DN ? i : DN + slice * STREAM_TILE + (i - DN) / LINES;
      const int column = (i < DN ? slice : (i - DN) % LINES) * (R / SLICES);
      prefetch_line(data + ((int64_t{head} * (DN + DV) + row) * R + column) * BYTES);
    }
  }

  // A warp that brings: everything. Descriptions of layers are there once `described` is so far.
  __device__ __forceinline__ static void bring_all() {
    Block& s = shared_memory<DTYPE>();
    const Arguments& a = s.a;
    Turn turn;
#pragma unroll 1
    for (int layer = 0; layer < a.model.n_layers; layer++) {
      wait_until(&s.described, layer + 1);
      prefetch_kv_b(layer);
#pragma unroll 1
      for (int kind = 0; kind < KINDS; kind++) {
        const Part& part = s.parts[layer % LAYERS][kind];
        if (kind == GATE_UP) {
          // After this block's part of attention, whose messages it would slow.
          wait_until(&s.attended, layer + 1);
          prefetch(layer, GATE_UP, 0, part.known);
        }
#pragma unroll 1
        for (int unit = 0; unit < part.units; unit++) {
          if (unit == part.known) {
            // While experts are chosen, memory has something to do.
            if (kind == GATE_UP) prefetch(layer, DOWN, 0, s.parts[layer % LAYERS][DOWN].known);
            wait_until(&s.routed, layer + 1);
            if (kind == GATE_UP && threadIdx.x < THREADS + 32) mark_other(layer, 2);
          }
          const int groups = groups_at(part, unit);
          if (KV_A != DTYPE && kind == KV) {
            turn = bring<KV_A>(layer, kind, unit, groups, turn);
          } else {
            turn = bring<DTYPE>(layer, kind, unit, groups, turn);
          }
        }
        if (kind == GATE_UP) {
          if (threadIdx.x < THREADS + 32) mark_other(layer, 3);
          // While the last blocks end, too.
          const int known = s.parts[layer % LAYERS][DOWN].known;
          prefetch(layer, DOWN, known, known + AHEAD_EXPERTS);
        }
      }
    }
  }

  // A group of a slot times a group of the input; `left` bytes of its rows are there. Sums to
  // to[row].
  template <int TYPE>
  __device__ __forceinline__ static void multiply(Block& s, int slot, int stride, int group,
                                                  int x_at, int left, int parity, float* to) {
    using T = StreamType<TYPE>;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    uint4 m[T::PIECES], b[T::B_PIECES];
#pragma unroll
    for (int p = 0; p < T::PIECES; p++) {
      const int offset = p / 2 * 64 + 16 * t;
      m[p] = *reinterpret_cast<const uint4*>(
          &s.ring[slot][(g + 8 * (p % 2)) * stride + group * T::GROUP_BYTES + offset]);
      if (offset >= left) m[p] = {0, 0, 0, 0};
    }
#pragma unroll
    for (int j = 0; j < T::B_PIECES; j++) {
      b[j] = {0, 0, 0, 0};
      if (lane < 4) {
        b[j] = *reinterpret_cast<const uint4*>(&s.products.x[x_at][T::b_offset(j, t)]);
      }
    }
    uint32_t scale = 0, scale8 = 0;
    if constexpr (T::SCALED) {
      scale = s.scales[slot][group][g];
      scale8 = s.scales[slot][group][g + 8];
    }
    typename T::Sum c[4] = {0, 0, 0, 0};
#pragma unroll
    for (int part = 0; part < T::PARTS; part++) T::product(part, c, m, b, scale, scale8, t);
    float low = static_cast<float>(c[0]), high = static_cast<float>(c[2]);
    if constexpr (T::SCALED) {
      float factor = T::scale(scale, parity), factor8 = T::scale(scale8, parity);
      if constexpr (T::INTEGER) {
        const float x_scale = s.products.x_scales[x_at];
        factor = __fmul_rn(x_scale, factor);
        factor8 = __fmul_rn(x_scale, factor8);
      }
      low = __fmul_rn(low, factor);
      high = __fmul_rn(high, factor8);
    }
    if (t == 0) {
      to[g] = low;
      to[g + 8] = high;
    }
  }

  // Multiplies units [begin, end) of a product, begin being 0 or `known`: of unit u and row r,
  // group i's sum is at s.products.sums[first_sum + groups before u + i][r], after a sync().
  template <int TYPE>
  __device__ __noinline__ static Consumer consume(int layer, int kind, int begin, int end,
                                                  int first_sum, Consumer own) {
    Block& s = shared_memory<DTYPE>();
    const Arguments& a = s.a;
    const Part& part = s.parts[layer % LAYERS][kind];
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4;
    int base = begin * part.groups;
#pragma unroll 1
    for (int unit = begin; unit < end; unit++) {
      const int groups = groups_at(part, unit);
      const int x_at = kind != DOWN         ? 0
                       : unit >= part.known ? (unit - part.known) * groups
                                            : shared_input(s.a, s.layers[layer % LAYERS]);
      const int64_t k = kind == OUTPUT      ? a.model.heads * DV
                        : kind != DOWN      ? a.model.d
                        : unit < part.known ? s.layers[layer % LAYERS].shared
                                            : a.model.intermediate;
      const int row_bytes = static_cast<int>(stream_row_bytes<TYPE>(k));
      // Which half of its four bytes an INT8 scale of group 0 is.
      const int odd = (kind == GATE_UP ? g : part.first + g) & groups & 1;
#pragma unroll 1
      for (int first = 0; first < groups; first += SLOT_GROUPS<TYPE>) {
        const int count = min(SLOT_GROUPS<TYPE>, groups - first);
        // Whoever has no group waits, too: a slot's phases are told apart by their parity alone.
        barrier_wait(shared_address(&s.arrived[own.turn.stage]), own.turn.phase);
#pragma unroll 1
        for (int mine = (warp - own.warp) & (WARPS - 1); mine < count; mine += WARPS) {
          const int group = first + mine;
          const int left = row_bytes - group * StreamType<TYPE>::GROUP_BYTES;
          multiply<TYPE>(s, own.turn.stage, row_bytes <= SLOT_BYTES ? row_bytes : SLOT_STRIDE, mine,
                         x_at + group, left, (odd ^ group) & 1,
                         s.products.sums[first_sum + base + group]);
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(shared_address(&s.free[own.turn.stage]));
        own.warp = (own.warp + count) & (WARPS - 1);
        own.turn.next();
      }
      base += groups;
    }
    return own;
  }

  // Sum of `count` groups from `group` on, for one of 16 rows.
  __device__ __forceinline__ static float sum(const Block& s, int group, int count, int row) {
    float total = 0;
    const float* from = &s.products.sums[group][row];
#pragma unroll 4
    for (int i = 0; i < count; i++) total = __fadd_rn(total, from[i * STREAM_TILE]);
    return total;
  }

  // This lane's four elements of a group of the input: rounded to bf16, or quantized with the rest
  // of the warp.
  __device__ __forceinline__ static void put(Block& s, int group, const float4& v) {
    using T = StreamType<DTYPE>;
    const int lane = threadIdx.x % 32;
    char* to = &s.products.x[group][4 * lane * T::X_BYTES];
    if constexpr (T::INTEGER) {
      float scale;
      const uint32_t packed = quantize_group(v, scale);
      *reinterpret_cast<uint32_t*>(to) = packed;
      if (lane == 0) s.products.x_scales[group] = scale;
    } else {
      *reinterpret_cast<uint2*>(to) = uint2{bf16_pair(v.x, v.y), bf16_pair(v.z, v.w)};
    }
  }
};
#endif

}  // namespace moela::cuda::persistent
