// Which form of the wide kernel (stream_wide.cuh) a product takes: by its number of slots alone,
// and with no effect on any bit.
#pragma once

#include <algorithm>

#include "cuda/stream_wide.cuh"

namespace moela::cuda {

template <int DTYPE, int TOKENS, int WARPS_K, bool COPY>
__global__ void __launch_bounds__(WIDE_THREADS, 1)
    wide_kernel(const __grid_constant__ StreamArguments a) {
  MOELA_DYNAMIC_SHARED(char, shared);
  Wide<DTYPE, TOKENS, WARPS_K, COPY>(a, shared).run();
}

template <int DTYPE, int TOKENS, int WARPS_K, bool COPY>
bool wide_launch(const Launch& at, StreamArguments& a, int64_t most_slots, int64_t most_tiles) {
  using W = Wide<DTYPE, TOKENS, WARPS_K, COPY>;
  a.depth = WIDE_DEEPEST;
  while (a.depth > 2 && W::shared_bytes(a.depth, a.experts) > stream_shared_limit()) a.depth--;
  const size_t shared = W::shared_bytes(a.depth, a.experts);
  if (shared > stream_shared_limit()) return false;
  const int rows = W::WARPS_M * (a.pair ? 8 : 16);
  a.row_tiles = (a.n + rows - 1) / rows;
  a.single = !a.plan && most_slots <= TOKENS;
  const int64_t tiles = most_tiles < 0 ? (most_slots + TOKENS - 1) / TOKENS : most_tiles;
  const int64_t blocks = std::min<int64_t>(tiles * a.row_tiles, at.sms);
  allow_shared(wide_kernel<DTYPE, TOKENS, WARPS_K, COPY>);
  launch(at, wide_kernel<DTYPE, TOKENS, WARPS_K, COPY>, dim3(static_cast<unsigned>(blocks)),
         dim3(WIDE_THREADS), shared, a);
  return true;
}

template <int DTYPE, bool COPY>
void wide_choose(const Launch& at, StreamArguments& a, int64_t slots, int64_t each) {
  // `each`: slots that an expert gets on average. With a plan at most as many tiles as slots.
  const int64_t tiles = a.plan ? std::min<int64_t>(slots, a.experts + slots / 32) : -1;
  if (slots <= 8 || (a.plan && each <= 2)) {
    if (wide_launch<DTYPE, 8, 8, COPY>(at, a, slots, tiles)) return;
  } else if (!a.plan && slots <= 128) {
    if (wide_launch<DTYPE, 32, 2, COPY>(at, a, slots, tiles)) return;
  } else if (each > 20) {
    if (wide_launch<DTYPE, 64, 1, COPY>(at, a, slots, tiles)) return;
  }
  if (!wide_launch<DTYPE, 32, 1, COPY>(at, a, slots, tiles)) {
    throw Error(MOELA_ERR_DEVICE, "this GPU has too little shared memory for a product");
  }
}

// The launcher of one type.
template <int DTYPE>
void wide_product(const Launch& at, const StreamProduct& p) {
  StreamArguments a = stream_arguments(at, p);
  a.row_bytes = stream_row_bytes<DTYPE>(p.k);
  a.aligned = a.row_bytes % 16 == 0;
  const int64_t rows = p.absorbed_only ? at.absorbed : at.bucket;
  const int64_t slots = rows * a.top_k;
  if (slots == 0) return;
  const int64_t each = (slots + a.experts - 1) / a.experts;
  if constexpr (StreamType<DTYPE>::INTEGER) {
    const QuantizedRows rows = quantize_rows(at, p);
    a.in = rows.bytes;
    a.in_scales = rows.scales;
    wide_choose<DTYPE, true>(at, a, slots, each);
  } else if (p.in.dtype == MOELA_BF16 && p.k % 8 == 0) {
    wide_choose<DTYPE, true>(at, a, slots, each);
  } else {
    wide_choose<DTYPE, false>(at, a, slots, each);
  }
}

}  // namespace moela::cuda
