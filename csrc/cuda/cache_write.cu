// What the cache keeps of a token: kv_a [R, r + dr] = [compressed latent | shared key] becomes
// [RMSNorm(latent) * norm | rotated key], stored in the pool's type (see moela_pool_desc) at the
// row's position. A block a row. DeepSeek-V2, arXiv 2405.04434, eq. 41 to 43.
#include "cuda/cache_entry.cuh"
#include "cuda/row_norm.cuh"

namespace moela::cuda {
namespace {

__global__ void __launch_bounds__(NORM_THREADS)
    cache_write_kernel(Step step, int rows, int layer, int r, int dr, const float* kv_a,
                       const float* table, const char* norm, int norm_dtype, float epsilon) {
  __shared__ float room[8];
  __shared__ float scales[2];
  MOELA_DYNAMIC_SHARED(float, x);  // [r + dr]
  wait_for_previous();
  allow_next();
  const int64_t row = step.begin(rows) + static_cast<int64_t>(blockIdx.x);
  if (row >= step.end(rows)) return;
  const int thread = threadIdx.x, width = r + dr;
  const float* from = kv_a + row * width;
  const moela_segment& segment = step.segments[step.row_segment[row]];
  const PagePool& pool = step.pools[segment.pool];
  const int position = step.positions[row];
  const int64_t page = step.pages[segment.page + position / MOELA_PAGE_TOKENS];
  const int slot = position % MOELA_PAGE_TOKENS;
  char* to = pool.at(page, layer) + slot * pool.row_bytes;

  for (int i = thread; i < dr / 2; i += NORM_THREADS) {
    const float2 pair = rotate_pair(from[r + 2 * i], from[r + 2 * i + 1], table[row * dr + i],
                                    table[row * dr + dr / 2 + i]);
    x[r + 2 * i] = pair.x;
    x[r + 2 * i + 1] = pair.y;
  }
  const float factor = row_norm_factor(from, r, epsilon, room);
  for (int i = thread; i < r; i += NORM_THREADS) {
    x[i] = normed(from[i], factor, norm_weight(norm, norm_dtype, i));
  }
  __syncthreads();
  put_cache_entry<NORM_THREADS>(threadIdx.x, pool.dtype, r, dr, x, scales, to,
                                pool.scales_at(page, layer) + slot * 2, [] { __syncthreads(); });
}

}  // namespace

void cache_write(const Launch& at, int32_t rows, int32_t layer, int64_t r, int64_t dr,
                 const float* kv_a, const float* table, const Weight& norm, float epsilon) {
  const int32_t most = most_rows(at, rows);
  if (most == 0) return;
  const size_t shared = static_cast<size_t>(r + dr) * sizeof(float);
  if (shared > 48 * 1024 - 256) {
    throw Error(MOELA_ERR_ARGUMENT, "cache_write: a cache row of over 12,000 elements");
  }
  launch(at, cache_write_kernel, dim3(most), dim3(NORM_THREADS), shared, at.step, rows, layer,
         static_cast<int>(r), static_cast<int>(dr), kv_a, table, norm.data, norm.dtype, epsilon);
}

}  // namespace moela::cuda
