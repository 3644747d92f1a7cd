// Cache rows of a window of key blocks, gathered from their pages: latents [keys, r] and rotary
// keys [keys, dr], f32 in rows for the generic path. For the fast path bf16, in the very order in
// which shared memory holds them: tiles of 64 columns, 128 bytes a row, 16-byte pieces swizzled by
// row (piece ^= row % 8), so that a tile is one bulk copy:
// - latents [block][r / 64][128 keys][64], rotary [block][128 keys][64],
// - kv_b_proj as bf16 [head][r / 64][256 rows][64].
// Keys past a segment's end are zero: their weights are zero, which cancels finite values only.
// Block 0 also makes the tables.
#include "cuda/cache_read.cuh"
#include "cuda/mla_prefill.cuh"
#include "cuda/mla_weight.cuh"

namespace moela::cuda {

namespace {

constexpr int THREADS = 256;
constexpr int KEYS = 16;         // of a thread block
constexpr int WEIGHT_ITEMS = 4;  // of a thread, 8 elements each
constexpr int MOST_SORTED = 512;

struct Args {
  Step step;
  MlaPrefillPass pass;
  Weight kv_b;
};

__device__ int ceil_div(int a, int b) { return (a + b - 1) / b; }

// The segment that key block `block` belongs to, by all threads of a warp; rest: the block's index
// in its segment. -1: past the last.
__device__ int find_segment(const Step& step, int block, int& rest) {
  const int lane = threadIdx.x % 32;
  const int n = step.counts->n_segments, absorbed = step.counts->n_absorbed;
  int before = 0;
  for (int base = 0; base < n; base += 32) {
    int blocks = 0;
    if (base + lane < n) {
      const moela_segment& segment = step.segments[base + lane];
      if (segment.row >= absorbed) {
        blocks = ceil_div(segment.position + segment.rows, int(MLA_PREFILL_TILE));
      }
    }
    int sum = blocks;
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(~0u, sum, d);
      if (lane >= d) sum += other;
    }
    const unsigned past = __ballot_sync(~0u, before + sum > block);
    if (past) {
      const int found = __ffs(past) - 1;
      rest = block - before - __shfl_sync(~0u, sum - blocks, found);
      return base + found;
    }
    before += __shfl_sync(~0u, sum, 31);
  }
  return -1;
}

__device__ void make_tables(const Step& step, MlaPrefillTables& tables) {
  __shared__ int n_tiles;
  __shared__ int lengths[MOST_SORTED];
  __shared__ MlaPrefillTile unsorted[MOST_SORTED];
  const int lane = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    const int n = step.counts->n_segments, absorbed = step.counts->n_absorbed;
    int tiles_before = 0, blocks_before = 0;
    for (int base = 0; base < n; base += 32) {
      moela_segment segment{};
      if (base + lane < n) segment = step.segments[base + lane];
      if (segment.row < absorbed) segment.rows = 0;
      int tiles = ceil_div(segment.rows, int(MLA_PREFILL_TILE));
      int blocks =
          segment.rows ? ceil_div(segment.position + segment.rows, int(MLA_PREFILL_TILE)) : 0;
      int tiles_sum = tiles, blocks_sum = blocks;
      for (int d = 1; d < 32; d *= 2) {
        const int t = __shfl_up_sync(~0u, tiles_sum, d), b = __shfl_up_sync(~0u, blocks_sum, d);
        if (lane >= d) tiles_sum += t, blocks_sum += b;
      }
      for (int i = 0; i < tiles; i++) {
        const int done = i * int(MLA_PREFILL_TILE);
        const int index = tiles_before + tiles_sum - 1 - i;  // last tiles first
        const MlaPrefillTile tile = {segment.row + done,
                                     min(int(MLA_PREFILL_TILE), segment.rows - done),
                                     segment.position + done, blocks_before + blocks_sum - blocks};
        if (index < MOST_SORTED) {
          unsorted[index] = tile;
          lengths[index] = tile.position + tile.rows;
        }
        tables.tiles[index] = tile;
      }
      tiles_before += __shfl_sync(~0u, tiles_sum, 31);
      blocks_before += __shfl_sync(~0u, blocks_sum, 31);
    }
    if (lane == 0) {
      n_tiles = tiles_before;
      tables.n_tiles = tiles_before;
      tables.n_blocks = blocks_before;
    }
  }
  __syncthreads();
  if (n_tiles > MOST_SORTED) return;
  for (int i = threadIdx.x; i < n_tiles; i += THREADS) {
    int rank = 0;
    for (int j = 0; j < n_tiles; j++) {
      rank += lengths[j] > lengths[i] || (lengths[j] == lengths[i] && j < i);
    }
    tables.tiles[rank] = unsorted[i];
  }
}

template <int DTYPE>
__device__ uint4 eight(const char* row, float scale, int i, int r, int dr) {
  CacheEight<DTYPE> bits;
  const CachePart part = cache_part(DTYPE, i, r, dr);
  bits.load(row, i, part, r, dr);
  return cache_bf16(bits, scale, i, part, r, dr);
}

// Elements [i, i + 8) of a cache row as bf16; i is a multiple of 8.
__device__ uint4 load8(int dtype, const char* row, float scale, int i, int r, int dr) {
  switch (dtype) {
    case MOELA_F32: {
      const float4* in = reinterpret_cast<const float4*>(row + i * 4);
      const float4 a = in[0], b = in[1];
      return {bf16_pair(a.x, a.y), bf16_pair(a.z, a.w), bf16_pair(b.x, b.y), bf16_pair(b.z, b.w)};
    }
    case MOELA_BF16:
      return eight<MOELA_BF16>(row, scale, i, r, dr);
    case MOELA_FP8:
      return eight<MOELA_FP8>(row, scale, i, r, dr);
    case MOELA_INT8:
      return eight<MOELA_INT8>(row, scale, i, r, dr);
    default:
      return eight<MOELA_INT6>(row, scale, i, r, dr);
  }
}

// Where 8 elements from `col` of `row` lie in tiles of 64 columns and `rows` rows.
__device__ int64_t tiled(int64_t row, int col, int rows) {
  return int64_t{col / 64} * rows * 128 + row * 128 + ((col % 64 / 8) ^ (row % 8)) * 16;
}

template <bool FAST>
__device__ void gather_keys(const Args& a, int index) {
  const MlaPrefillPass& pass = a.pass;
  const int r = int(pass.shape.r), dr = int(pass.shape.dr), width = r + dr;
  const int window_key = index * KEYS;
  const int window_block = window_key / int(MLA_PREFILL_TILE);
  int block;
  const int found = find_segment(a.step, pass.block + window_block, block);
  if (found < 0) return;
  const moela_segment segment = a.step.segments[found];
  const PagePool& pool = a.step.pools[segment.pool];
  const int dtype = pool.dtype;
  const bool scaled = dtype != MOELA_F32 && dtype != MOELA_BF16;
  const int first = window_key % int(MLA_PREFILL_TILE);
  const int end = segment.position + segment.rows;
  const int unit = FAST ? 8 : 1;
  for (int i = threadIdx.x; i < KEYS * (width / unit); i += THREADS) {
    const int row = first + i / (width / unit), col = i % (width / unit) * unit;
    const int key = block * int(MLA_PREFILL_TILE) + row;
    const bool latent = col < r;
    const char* from = nullptr;
    float scale = 1;
    if (key < end) {
      const int64_t page = a.step.pages[segment.page + key / MOELA_PAGE_TOKENS];
      const int token = key % MOELA_PAGE_TOKENS;
      from = pool.at(page, pass.layer) + token * pool.row_bytes;
      if (scaled) {
        scale = cache_scale(pool.scales_at(page, pass.layer)[token * 2 + (latent ? 0 : 1)]);
      }
    }
    if constexpr (FAST) {
      const uint4 x = from ? load8(dtype, from, scale, col, r, dr) : make_uint4(0, 0, 0, 0);
      char* to = latent ? pass.latents + int64_t{window_block} * MLA_PREFILL_TILE * r * 2 +
                              tiled(row, col, int(MLA_PREFILL_TILE))
                        : pass.rotary + int64_t{window_block} * MLA_PREFILL_TILE * dr * 2 +
                              tiled(row, col - r, int(MLA_PREFILL_TILE));
      *reinterpret_cast<uint4*>(to) = x;
    } else {
      const int64_t to = int64_t{window_block} * MLA_PREFILL_TILE + row;
      const float x = from ? cache_element(dtype, from, col, scale, r, dr) : 0.f;
      if (latent) {
        reinterpret_cast<float*>(pass.latents)[to * r + col] = x;
      } else {
        reinterpret_cast<float*>(pass.rotary)[to * dr + col - r] = x;
      }
    }
  }
}

// kv_b_proj of the pass's heads, as bf16 tiles.
__device__ void gather_weights(const Args& a, int index) {
  const MlaPrefillPass& pass = a.pass;
  const int r = int(pass.shape.r), head_rows = int(pass.shape.dn + pass.shape.dv);
  const int64_t n = int64_t{pass.heads} * head_rows * (r / 8);
#pragma unroll
  for (int k = 0; k < WEIGHT_ITEMS; k++) {
    const int64_t i = (int64_t{index} * WEIGHT_ITEMS + k) * THREADS + threadIdx.x;
    if (i >= n) return;
    const int64_t row = i / (r / 8);
    const int col = int(i % (r / 8)) * 8;
    const int64_t from = int64_t{pass.head} * head_rows + row;
    uint4 x;
    if (a.kv_b.dtype == MOELA_BF16)
      x = weight_eight<MOELA_BF16>(a.kv_b, from, col);
    else if (a.kv_b.dtype == MOELA_FP8)
      x = weight_eight<MOELA_FP8>(a.kv_b, from, col);
    else
      x = weight_eight<MOELA_INT8>(a.kv_b, from, col);
    char* to =
        pass.weights + row / head_rows * head_rows * r * 2 + tiled(row % head_rows, col, head_rows);
    *reinterpret_cast<uint4*>(to) = x;
  }
}

template <bool FAST>
__global__ void __launch_bounds__(THREADS) gather_window(const __grid_constant__ Args a) {
  wait_for_previous();
  allow_next();
  const int keys = a.pass.blocks * int(MLA_PREFILL_TILE) / KEYS;
  const int index = int(blockIdx.x) - (a.pass.first ? 1 : 0);
  if (index < 0) {
    make_tables(a.step, *a.pass.tables);
  } else if (index < keys) {
    gather_keys<FAST>(a, index);
  } else {
    gather_weights(a, index - keys);
  }
}

}  // namespace

void mla_prefill_gather(const Launch& at, const MlaPrefillPass& pass, bool fast,
                        const Weight& kv_b) {
  const Args args = {at.step, pass, kv_b};
  int64_t grid = (pass.first ? 1 : 0) + pass.blocks * MLA_PREFILL_TILE / KEYS;
  if (fast) {
    const int64_t pieces = pass.heads * (pass.shape.dn + pass.shape.dv) * pass.shape.r / 8;
    grid += (pieces + THREADS * WEIGHT_ITEMS - 1) / (THREADS * WEIGHT_ITEMS);
  }
  auto* kernel = &gather_window<false>;
  if (fast) kernel = &gather_window<true>;
  launch(at, kernel, dim3(unsigned(grid)), dim3(THREADS), 0, args);
}

}  // namespace moela::cuda
