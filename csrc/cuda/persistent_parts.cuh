// Which rows of a layer's products a block of persistent.cu has.
#pragma once

#include "cuda/persistent.cuh"

namespace moela::cuda::persistent {

constexpr int GATE_UNIT = 8;  // rows of gate and the same of up in a unit

#ifdef __CUDACC__
__device__ __forceinline__ int groups_of(int64_t k) { return static_cast<int>(stream_groups(k)); }
__device__ __forceinline__ int routed_units(const Arguments& a) {  // of an expert
  return (a.model.intermediate + GATE_UNIT - 1) / GATE_UNIT;
}
__device__ __forceinline__ int groups_at(const Part& part, int unit) {
  return unit < part.known ? part.groups : part.more_groups;
}

// Where the input of the shared experts' down projections is among that of all: last, so that it
// does not lie where gate and up still find theirs. That of a dense layer is alone.
__device__ __forceinline__ int shared_input(const Arguments& a, const PersistentLayer& l) {
  const int chosen = static_cast<int>(a.model.shape.top_k) * groups_of(a.model.intermediate);
  return l.router ? max(chosen, groups_of(a.model.d)) : 0;
}

// This block's part of a product of layer `l`.
__device__ __forceinline__ Part make_part(const Arguments& a, const PersistentLayer& l, int kind) {
  const int top_k = l.router ? static_cast<int>(a.model.shape.top_k) : 0;
  const int shared = static_cast<int>(l.shared);
  const int width = groups_of(kind == OUTPUT ? a.model.heads * DV : a.model.d);
  if (kind == GATE_UP) {
    // Of the shared experts any even number of rows, so that all blocks read alike; units of the
    // others are taken in turn, so that blocks together read on through memory.
    const int first = share((shared + 1) / 2) * 2;
    const int end = min(shared, share((shared + 1) / 2, 1) * 2);
    const int known = (end - first + GATE_UNIT - 1) / GATE_UNIT;
    const int all = top_k * routed_units(a), mine = static_cast<int>(blockIdx.x);
    const int grid = static_cast<int>(gridDim.x);
    const int more = mine < all ? (all - mine + grid - 1) / grid : 0;
    return {first, end, known + more, known, width, width};
  }
  const int n = kind == Q ? a.model.heads * (DN + DR) : kind == KV ? WIDTH : a.model.d;
  const int first = share(n), end = share(n, 1);
  if (kind != DOWN) {
    const int units = (end - first + STREAM_TILE - 1) / STREAM_TILE;
    return {first, end, units, units, width, width};
  }
  const int known = shared > 0 && end > first;
  return {first,
          end,
          end > first ? known + top_k : 0,
          known,
          groups_of(shared),
          groups_of(a.model.intermediate)};
}

// Where a unit of gate and up begins: its first row and rank (-1: shared).
__device__ __forceinline__ int gate_row(const Arguments& a, const Part& part, int unit, int& rank) {
  if (unit < part.known) {
    rank = -1;
    return part.first + unit * GATE_UNIT;
  }
  const int index = blockIdx.x + (unit - part.known) * gridDim.x;
  rank = index / routed_units(a);
  return (index - rank * routed_units(a)) * GATE_UNIT;
}
#endif

}  // namespace moela::cuda::persistent
