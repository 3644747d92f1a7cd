// Which form of the ring kernel (stream_ring.cuh) a product takes: by its number of slots alone,
// and with no effect on any bit.
#include "cuda/stream_ring.cuh"

#include <algorithm>

#include "cuda/wgmma.h"
#include "cuda/wgmma_launch.cuh"

namespace moela::cuda {
namespace {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define MOELA_CLUSTER(blocks)
#else
#define MOELA_CLUSTER(blocks) __cluster_dims__(blocks, 1, 1)
#endif

template <int BLOCK_ROWS, int TOKENS, int CLUSTER, RingShared SHARED>
__global__ MOELA_CLUSTER(CLUSTER)
    __launch_bounds__(RING_THREADS, 1) void ring_kernel(const __grid_constant__ CUtensorMap weights,
                                                        const __grid_constant__ CUtensorMap tokens,
                                                        const __grid_constant__ RingArguments a) {
#if __CUDA_ARCH__ >= 900
  MOELA_ALIGNED_DYNAMIC_SHARED(1024, char, shared);
  RingProduct<BLOCK_ROWS, TOKENS, CLUSTER, SHARED>(a, shared).run(weights, tokens);
#endif
}

#undef MOELA_CLUSTER

// Clusters that run at once: they do not fill every multiprocessor.
template <int BLOCK_ROWS, int TOKENS, int CLUSTER, RingShared SHARED>
int64_t ring_clusters(const Launch& at) {
  if (CLUSTER == 1) return at.sms;
  static const int64_t clusters = [&] {
    const auto kernel = ring_kernel<BLOCK_ROWS, TOKENS, CLUSTER, SHARED>;
    using S = RingShape<BLOCK_ROWS, TOKENS, CLUSTER, SHARED>;
    allow_shared(kernel);
    const size_t shared = S::shared_bytes(S::depth(1), 1);
    return std::max(1, most_clusters<CLUSTER>(at, kernel, RING_THREADS, shared));
  }();
  return clusters;
}

CUtensorMap token_map(const Launch& at, const StreamProduct& p, uint32_t tokens) {
  const uint64_t row = p.k * 2, rows = at.bucket;
  const uint64_t sizes[3] = {static_cast<uint64_t>(p.k), rows, 1};
  const uint64_t strides[2] = {row, row * rows};
  const uint32_t box[3] = {WGMMA_K, tokens, 1};
  return tensor_map(p.in.data, 3, sizes, strides, box);
}

template <int BLOCK_ROWS, int TOKENS, int CLUSTER, RingShared SHARED>
void ring_launch(const Launch& at, RingArguments a, const StreamProduct& p, int64_t slots) {
  using S = RingShape<BLOCK_ROWS, TOKENS, CLUSTER, SHARED>;
  const auto kernel = ring_kernel<BLOCK_ROWS, TOKENS, CLUSTER, SHARED>;
  StreamArguments& s = a.stream;
  s.depth = S::depth(s.experts);
  const size_t shared = S::shared_bytes(s.depth, s.experts);
  const int rows = s.pair ? BLOCK_ROWS / 2 : BLOCK_ROWS;
  s.row_tiles = (s.n + rows - 1) / rows;
  a.token_tiles = static_cast<int32_t>((slots + TOKENS - 1) / TOKENS);
  int64_t blocks = slots * s.row_tiles;
  if (SHARED == RingShared::TOKENS) {
    blocks = (s.row_tiles + CLUSTER - 1) / CLUSTER * CLUSTER * a.token_tiles;
  } else if (SHARED == RingShared::WEIGHTS) {
    blocks = (a.token_tiles + CLUSTER - 1) / CLUSTER * CLUSTER * s.row_tiles;
  }
  blocks = std::min(blocks, ring_clusters<BLOCK_ROWS, TOKENS, CLUSTER, SHARED>(at) * CLUSTER);
  allow_shared(kernel);
  const CUtensorMap weights = !s.pair      ? weight_map(p.weight, S::BRING_ROWS)
                              : a.up_first ? pair_map(p.up, p.weight, S::BRING_ROWS)
                                           : pair_map(p.weight, p.up, S::BRING_ROWS);
  const CUtensorMap tokens = S::GATHERS ? weights : token_map(at, p, S::BRING_TOKENS);
  launch<CLUSTER>(at, kernel, dim3(static_cast<unsigned>(blocks)), dim3(RING_THREADS), shared,
                  weights, tokens, a);
}

struct RingChoice {
  void (*launch)(const Launch&, RingArguments, const StreamProduct&, int64_t) = nullptr;
  int64_t cost = INT64_MAX;

  // What a tile costs a block: 16-byte reads of shared memory, of which multiplying is made, and
  // some more.
  template <int BLOCK_ROWS, int TOKENS, int CLUSTER, RingShared SHARED>
  void offer(const Launch& at, const StreamArguments& a, int64_t slots) {
    using S = RingShape<BLOCK_ROWS, TOKENS, CLUSTER, SHARED>;
    int64_t row_tiles = (a.n * (a.pair ? 2 : 1) + BLOCK_ROWS - 1) / BLOCK_ROWS;
    int64_t token_tiles = (slots + TOKENS - 1) / TOKENS;
    int64_t& together = SHARED == RingShared::TOKENS ? row_tiles : token_tiles;
    together = (together + CLUSTER - 1) / CLUSTER;
    const int64_t clusters = ring_clusters<BLOCK_ROWS, TOKENS, CLUSTER, SHARED>(at);
    const int64_t rounds = (row_tiles * token_tiles + clusters - 1) / clusters;
    const int64_t tile = 8 + 4 * S::OWN + 2;
    if (rounds * tile >= cost) return;
    cost = rounds * tile;
    launch = ring_launch<BLOCK_ROWS, TOKENS, CLUSTER, SHARED>;
  }
};

}  // namespace

bool stream_product_ring(const Launch& at, const StreamProduct& p) {
  const int64_t rows = p.absorbed_only ? at.absorbed : at.bucket;
  const int64_t slots = rows * (p.plan ? p.top_k : 1);
  const bool pair = p.up.data != nullptr;
  if (p.in.dtype != MOELA_BF16 || slots <= 8) return false;
  if (!(pair ? wgmma_takes(at, p.weight, p.up) : wgmma_takes(at, p.weight))) return false;
  RingArguments a{};
  a.up_first = pair && p.up.data < p.weight.data;
  a.stream = stream_arguments(at, p);
  if (p.plan) {
    if (slots / p.experts > 24) {
      ring_launch<128, 64, 1, RingShared::NOTHING>(at, a, p, slots);
    } else {
      ring_launch<128, 32, 1, RingShared::NOTHING>(at, a, p, slots);
    }
    return true;
  }
  RingChoice choice;
  // Of equal costs the first: with fewer blocks in a cluster.
  choice.offer<128, 64, 2, RingShared::WEIGHTS>(at, a.stream, slots);
  choice.offer<64, 64, 2, RingShared::WEIGHTS>(at, a.stream, slots);
  choice.offer<32, 16, 2, RingShared::TOKENS>(at, a.stream, slots);
  choice.offer<128, 64, 4, RingShared::WEIGHTS>(at, a.stream, slots);
  choice.offer<128, 64, 4, RingShared::TOKENS>(at, a.stream, slots);
  choice.offer<64, 64, 4, RingShared::TOKENS>(at, a.stream, slots);
  choice.offer<32, 64, 4, RingShared::TOKENS>(at, a.stream, slots);
  choice.offer<64, 32, 4, RingShared::TOKENS>(at, a.stream, slots);
  choice.offer<32, 32, 4, RingShared::TOKENS>(at, a.stream, slots);
  choice.launch(at, a, p, slots);
  return true;
}

}  // namespace moela::cuda
