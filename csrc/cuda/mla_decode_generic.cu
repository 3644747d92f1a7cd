// mla_decode for any dims, cache type and GPU, f32 arithmetic: a block a row and head, a warp every
// sixteenth key by a running softmax; the warps' results are merged in ascending order.
#include "cuda/cache_read.cuh"
#include "cuda/mla_decode.cuh"
#include "cuda/mla_weight.cuh"

namespace moela::cuda {

namespace {

constexpr int WARPS = 16;
constexpr int THREADS = 32 * WARPS;

// A warp's share of a row: keys warp, warp + WARPS, ... A lane has columns lane + 32 j.
template <int DTYPE, int COLUMNS>
__device__ __forceinline__ void attend_keys(const MlaDecodeArgs& a, const moela_segment& segment,
                                            int keys, const float* q, float& max, float& sum,
                                            float (&o)[COLUMNS]) {
  const PagePool& pool = a.step.pools[segment.pool];
  const int lane = threadIdx.x % 32, width = a.r + a.dr;
  constexpr bool SCALED = DTYPE != MOELA_F32 && DTYPE != MOELA_BF16;
  for (int key = threadIdx.x / 32; key < keys; key += WARPS) {
    const int page = a.step.pages[segment.page + key / MOELA_PAGE_TOKENS];
    const int token = key % MOELA_PAGE_TOKENS;
    const char* row = pool.at(page, a.layer) + token * pool.row_bytes;
    float scale = 1, key_scale = 1;
    if (SCALED) {
      const uint8_t* codes = pool.scales_at(page, a.layer) + 2 * token;
      scale = cache_scale(codes[0]);
      key_scale = cache_scale(codes[1]);
    }
    float x[COLUMNS], score = 0;
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
      const int i = lane + 32 * j;
      x[j] = i < a.r ? cache_element(DTYPE, row, i, scale, a.r, a.dr) : 0;
      score = fmaf(i < a.r ? q[i] : 0, x[j], score);
    }
    for (int i = a.r + lane; i < width; i += 32) {
      score = fmaf(q[i], cache_element(DTYPE, row, i, key_scale, a.r, a.dr), score);
    }
#pragma unroll
    for (int i = 16; i > 0; i /= 2) score += __shfl_xor_sync(~0u, score, i);
    const float most = fmaxf(max, score);
    const float factor = __expf(max - most), p = __expf(score - most);
    max = most;
    sum = fmaf(sum, factor, p);
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) o[j] = fmaf(p, x[j], o[j] * factor);
  }
}

// Grid: (heads; rows). Shared: the query, then the warps' maxima, sums and results.
template <int COLUMNS>
__global__ void __launch_bounds__(THREADS) attend(const __grid_constant__ MlaDecodeArgs a) {
  MOELA_DYNAMIC_SHARED(float, memory);
  wait_for_previous();
  allow_next();
  const int head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int width = a.r + a.dr;
  float* q = memory;
  float* states = q + width;
  float* results = states + 2 * WARPS;
  const int n = a.step.counts->n_absorbed;
  for (int row = blockIdx.y; row < n; row += gridDim.y) {
    const int64_t at = int64_t(row) * a.heads + head;
    __syncthreads();
    for (int i = threadIdx.x; i < width; i += THREADS) q[i] = tensor_value(a.q, at * width + i);
    __syncthreads();
    const moela_segment& segment = a.step.segments[a.step.row_segment[row]];
    const int keys = a.step.positions[row] + 1;
    float max = -INFINITY, sum = 0, o[COLUMNS] = {};
    switch (a.step.pools[segment.pool].dtype) {
      case MOELA_F32:
        attend_keys<MOELA_F32>(a, segment, keys, q, max, sum, o);
        break;
      case MOELA_BF16:
        attend_keys<MOELA_BF16>(a, segment, keys, q, max, sum, o);
        break;
      case MOELA_FP8:
        attend_keys<MOELA_FP8>(a, segment, keys, q, max, sum, o);
        break;
      case MOELA_INT8:
        attend_keys<MOELA_INT8>(a, segment, keys, q, max, sum, o);
        break;
      default:
        attend_keys<MOELA_INT6>(a, segment, keys, q, max, sum, o);
    }
    if (lane == 0) {
      states[2 * warp] = max;
      states[2 * warp + 1] = sum;
    }
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
      if (lane + 32 * j < a.r) results[warp * a.r + lane + 32 * j] = o[j];
    }
    __syncthreads();
    float most = states[0];
    for (int i = 1; i < WARPS; i++) most = fmaxf(most, states[2 * i]);
    float total = 0;
    for (int i = 0; i < WARPS; i++) total += states[2 * i + 1] * __expf(states[2 * i] - most);
    for (int i = threadIdx.x; i < a.r; i += THREADS) {
      float value = 0;
      for (int w = 0; w < WARPS; w++) {
        value = fmaf(results[w * a.r + i], __expf(states[2 * w] - most), value);
      }
      tensor_store(a.out, at * a.r + i, value / total);
    }
  }
}

template <int COLUMNS>
void launch_any(const Launch& at, const MlaDecodeArgs& args) {
  const size_t bytes = sizeof(float) * (args.r + args.dr + 2 * WARPS + WARPS * args.r);
  static const bool allowed = [] {
    check(cudaFuncSetAttribute(attend<COLUMNS>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               32 * COLUMNS * 4 * (WARPS + 1) + 4096),
          "mla_decode");
    return true;
  }();
  (void)allowed;
  const unsigned rows = at.absorbed < 65535 ? at.absorbed : 65535;
  launch(at, attend<COLUMNS>, dim3(args.heads, rows), dim3(THREADS), bytes, args);
}

}  // namespace

void mla_decode_generic(const Launch& at, const MlaDecodeArgs& args) {
  if (args.dr > 512) throw Error(MOELA_ERR_ARGUMENT, "qk_rope_head_dim must be at most 512");
  if (args.r <= 64) return launch_any<2>(at, args);
  if (args.r <= 256) return launch_any<8>(at, args);
  if (args.r <= 512) return launch_any<16>(at, args);
  if (args.r <= 1024) return launch_any<32>(at, args);
  throw Error(MOELA_ERR_ARGUMENT, "kv_lora_rank must be at most 1024");
}

}  // namespace moela::cuda
