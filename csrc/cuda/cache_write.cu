// What the cache keeps of a token: kv_a [R, r + dr] = [compressed latent | shared key] becomes
// [RMSNorm(latent) * norm | rotated key], stored in the pool's type (see moela_pool_desc) at the
// row's position. A block a row. DeepSeek-V2, arXiv 2405.04434, eq. 41 to 43.
#include <cuda_fp8.h>

#include "cuda/row_norm.cuh"
#include "cuda/rows.cuh"

namespace moela::cuda {
namespace {

__device__ __forceinline__ float scale_of(int code) {
  return code == 0 ? 0.0f
                   : static_cast<float>(8 + code % 8) * __int_as_float((code / 8 - 27 + 127) << 23);
}

// The smallest code with largest <= scale * q; scale * q is exact in f32 for q = 448, 127, 31.
__device__ __forceinline__ int code_of(float largest, float q) {
  if (!(largest > 0)) return 0;
  // About right by exponent and mantissa, then exactly.
  const uint32_t bits = __float_as_uint(__fdiv_rn(largest, q));
  int code = static_cast<int>(bits >> 20) - (127 - 24) * 8;
  code = max(1, min(255, code));
  while (code < 255 && largest > scale_of(code) * q) code++;
  while (code > 1 && largest <= scale_of(code - 1) * q) code--;
  return code;
}

__device__ __forceinline__ int quantized(float x, float scale, int most) {
  if (scale == 0) return 0;
  return max(-most, min(most, __float2int_rn(__fdiv_rn(x, scale))));
}

// The largest magnitude of x[begin, end) by one warp.
__device__ __forceinline__ float largest_of(const float* x, int begin, int end) {
  float largest = 0;
  for (int i = begin + static_cast<int>(threadIdx.x) % 32; i < end; i += 32) {
    largest = fmaxf(largest, fabsf(x[i]));
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, step));
  }
  return largest;
}

__global__ void __launch_bounds__(NORM_THREADS)
    cache_write_kernel(Step step, int rows, int layer, int r, int dr, const float* kv_a,
                       const float* table, const char* norm, int norm_dtype, float epsilon) {
  __shared__ float room[8];
  __shared__ float scales[2];
  extern __shared__ float x[];  // [r + dr]
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
  const int dtype = pool.dtype;

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
  if (dtype == MOELA_F32) {
    for (int i = thread; i < width; i += NORM_THREADS) reinterpret_cast<float*>(to)[i] = x[i];
    return;
  }
  if (dtype == MOELA_BF16) {
    for (int i = thread; i < width; i += NORM_THREADS) {
      reinterpret_cast<uint16_t*>(to)[i] = bf16_bits(x[i]);
    }
    return;
  }
  const int most = dtype == MOELA_FP8 ? 448 : dtype == MOELA_INT8 ? 127 : 31;
  if (thread < 64) {
    const int part = thread / 32;
    const float largest = part == 0 ? largest_of(x, 0, r) : largest_of(x, r, width);
    if (thread % 32 == 0) {
      const int code = code_of(largest, static_cast<float>(most));
      scales[part] = scale_of(code);
      pool.scales_at(page, layer)[slot * 2 + part] = static_cast<uint8_t>(code);
    }
  }
  __syncthreads();
  if (dtype != MOELA_INT6) {
    for (int i = thread; i < width; i += NORM_THREADS) {
      const float scale = scales[i >= r];
      if (dtype == MOELA_INT8) {
        to[i] = static_cast<char>(quantized(x[i], scale, most));
      } else {
        to[i] = static_cast<char>(__nv_cvt_float_to_fp8(scale == 0 ? 0.0f : __fdiv_rn(x[i], scale),
                                                        __NV_SATFINITE, __NV_E4M3));
      }
    }
    return;
  }
  uint32_t* codes = reinterpret_cast<uint32_t*>(x);
  for (int i = thread; i < width; i += NORM_THREADS) {
    codes[i] = static_cast<uint32_t>(quantized(x[i], scales[i >= r], most) + 32);
  }
  __syncthreads();
  // A thread one of the three words of 16 elements.
  for (int i = thread; i < width / 16 * 3; i += NORM_THREADS) {
    const uint32_t* of = codes + i / 3 * 16;
    const int word = i % 3;
    uint32_t bits = 0;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const uint32_t byte =
          word < 2 ? (of[4 * word + j] & 15) | (of[4 * word + j + 8] & 15) << 4
                   : of[j] >> 4 | of[j + 4] >> 4 << 2 | of[j + 8] >> 4 << 4 | of[j + 12] >> 4 << 6;
      bits |= byte << 8 * j;
    }
    reinterpret_cast<uint32_t*>(to)[i] = bits;
  }
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
