// Generated weights to the types with scales, in the GPU's memory: what cpu/quantize.cc and
// cpu/quantize_int4.cc do, bit for bit. This file is compiled without contraction (--fmad=false).
#include <cuda_bf16.h>

#include "cuda/launch.h"
#include "cuda/runtime_model.h"

namespace moela::cuda {
namespace {

constexpr int GROUP = 128;
constexpr int SUBGROUP = 32;
constexpr int SUBGROUPS = GROUP / SUBGROUP;
constexpr int MAX_FACTOR = 15;
constexpr float TO_INTEGER = 0x1.8p23f;
constexpr int THREADS = 256;

struct Matrix {
  const void* data;
  int32_t dtype;  // F32 or BF16
  int64_t rows, cols;

  __device__ float at(int64_t i) const {
    return dtype == MOELA_F32 ? static_cast<const float*>(data)[i]
                              : __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
  }
  __host__ __device__ int64_t groups() const { return (cols + GROUP - 1) / GROUP; }
};

__device__ uint16_t bf16_bits(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
__device__ float bf16_value(uint16_t bits) { return __uint_as_float(uint32_t{bits} << 16); }

__device__ float warp_max(float x) {
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, step));
  return x;
}

// A warp a group of a row.
__global__ void __launch_bounds__(THREADS) int8_kernel(Matrix w, int8_t* q, uint16_t* scales) {
  const int64_t warp = (blockIdx.x * int64_t{THREADS} + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (warp >= w.rows * w.groups()) return;
  const int64_t row = warp / w.groups(), begin = warp % w.groups() * GROUP;
  float x[SUBGROUPS], largest = 0;
  for (int j = 0; j < SUBGROUPS; j++) {
    const int64_t col = begin + j * 32 + lane;
    x[j] = col < w.cols ? w.at(row * w.cols + col) : 0;
    largest = fmaxf(largest, fabsf(x[j]));
  }
  largest = warp_max(largest);
  const uint16_t half = bf16_bits(largest / 127);
  if (lane == 0) scales[warp] = half;
  const float scale = bf16_value(half);
  const float inverse = scale > 0x1p-120f ? 1 / scale : 0;
  for (int j = 0; j < SUBGROUPS; j++) {
    const int64_t col = begin + j * 32 + lane;
    float y = x[j] * inverse;
    y = y > -127 ? y : -127;
    y = y < 127 ? y : 127;
    if (col < w.cols) q[row * w.cols + col] = static_cast<int8_t>((y + TO_INTEGER) - TO_INTEGER);
  }
}

__device__ uint8_t fp8_bits(float value) {
  const uint32_t bits = __float_as_uint(value);
  const uint32_t sign = bits >> 24 & 0x80, magnitude = bits & 0x7fffffff;
  if (magnitude >= 0x43e80000) return sign | 0x7e;
  if (magnitude < 0x3c800000) {
    const float sum = __uint_as_float(magnitude) + 0x1.8p14f;
    return sign | (__float_as_uint(sum) & 0xf);
  }
  const uint32_t rounded = magnitude + 0x7ffff + (magnitude >> 20 & 1) - (uint32_t{120} << 23);
  return sign | rounded >> 20;
}

// A block 128 x 128 elements.
__global__ void __launch_bounds__(THREADS) fp8_kernel(Matrix w, uint8_t* q, float* scales) {
  __shared__ float room[THREADS / 32];
  const int64_t down = blockIdx.x / w.groups() * GROUP, across = blockIdx.x % w.groups() * GROUP;
  const int64_t rows = min(int64_t{GROUP}, w.rows - down),
                cols = min(int64_t{GROUP}, w.cols - across);
  float largest = 0;
  for (int i = threadIdx.x; i < GROUP * GROUP; i += THREADS) {
    const int row = i / GROUP, col = i % GROUP;
    if (row < rows && col < cols) {
      largest = fmaxf(largest, fabsf(w.at((down + row) * w.cols + across + col)));
    }
  }
  largest = warp_max(largest);
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = largest;
  __syncthreads();
  for (int i = 0; i < THREADS / 32; i++) largest = fmaxf(largest, room[i]);
  const float scale = __uint_as_float((__float_as_uint(largest / 448) + 0x7fffff) & 0x7f800000);
  if (threadIdx.x == 0) scales[blockIdx.x] = scale;
  const float inverse = scale > 0x1p-120f ? 1 / scale : 0;
  for (int i = threadIdx.x; i < GROUP * GROUP; i += THREADS) {
    const int row = i / GROUP, col = i % GROUP;
    if (row < rows && col < cols) {
      const int64_t at = (down + row) * w.cols + across + col;
      q[at] = fp8_bits(w.at(at) * inverse);
    }
  }
}

__device__ __forceinline__ float nearest(float x) {
  x = (x + TO_INTEGER) - TO_INTEGER;
  x = x > -8 ? x : -8;
  return x < 7 ? x : 7;
}

__device__ __forceinline__ float error_of(const float (&w)[SUBGROUP], float step) {
  const float inverse = 1 / step;
  float sums[8] = {};
#pragma unroll
  for (int i = 0; i < SUBGROUP; i++) {
    const float error = w[i] - nearest(w[i] * inverse) * step;
    sums[i % 8] += error * error;
  }
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// Four threads a group, one for each 32 of its columns.
__global__ void __launch_bounds__(THREADS) int4_kernel(Matrix w, uint32_t* q, uint32_t* scales) {
  const float reaches[] = {5.5f, 6, 6.5f, 7, 7.25f, 7.5f, 7.75f, 8, 8.5f};
  const float most_factors[] = {15, 14, 13, 12, 11, 10};
  const int64_t group = (blockIdx.x * int64_t{THREADS} + threadIdx.x) / SUBGROUPS;
  const int own = threadIdx.x % SUBGROUPS, lane = threadIdx.x % 32;
  const bool inside = group < w.rows * w.groups();
  const int64_t row = group / w.groups(), begin = group % w.groups() * GROUP;
  float x[SUBGROUP];
  float low = 0, high = 0, magnitude = 0;
#pragma unroll
  for (int i = 0; i < SUBGROUP; i++) {
    const int64_t col = begin + own * SUBGROUP + i;
    x[i] = inside && col < w.cols ? w.at(row * w.cols + col) : 0;
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
    magnitude = fmaxf(magnitude, fabsf(x[i]));
  }
  for (int step = 1; step < SUBGROUPS; step *= 2) {
    low = fminf(low, __shfl_xor_sync(0xffffffff, low, step));
    high = fmaxf(high, __shfl_xor_sync(0xffffffff, high, step));
  }
  const float largest = fmaxf(-low, high);
  const bool usual = largest > 0x1p-100f && largest < 0x1p120f;
  const float sign = high > -low ? -1.f : 1.f;

  float step = 0;
  if (usual && !(magnitude <= largest * 0x1p-20f)) {
    float best = INFINITY;
    for (float reach : reaches) {
      const float trial = magnitude / reach;
      const float error = error_of(x, sign * trial);
      if (error < best) {
        best = error;
        step = trial;
      }
    }
  }
  float widest = step;
  for (int d = 1; d < SUBGROUPS; d *= 2) {
    widest = fmaxf(widest, __shfl_xor_sync(0xffffffff, widest, d));
  }

  float best = INFINITY, scale = 0;
  uint16_t half = 0;
  int factor = 0;
  for (float most : most_factors) {
    const uint16_t candidate = bf16_bits(sign * widest / most);
    const float value = bf16_value(candidate);
    const float ratio = step / fabsf(value);
    const int down = min(max(static_cast<int>(ratio), 1), MAX_FACTOR),
              up = min(down + 1, MAX_FACTOR);
    const float error_down = error_of(x, static_cast<float>(down) * value);
    const float error_up = error_of(x, static_cast<float>(up) * value);
    const float mine = fminf(error_down, error_up);
    float total = 0;
    for (int b = 0; b < SUBGROUPS; b++) {
      total += __shfl_sync(0xffffffff, mine, lane / SUBGROUPS * SUBGROUPS + b);
    }
    if (total < best) {
      best = total;
      half = candidate;
      scale = value;
      factor = error_up < error_down ? up : down;
    }
  }
  if (!usual) {
    half = largest < 1 ? 0 : 0x7fc0;
    factor = 0;
  }
  uint32_t word = half;
  for (int b = 0; b < SUBGROUPS; b++) {
    const int other = __shfl_sync(0xffffffff, factor, lane / SUBGROUPS * SUBGROUPS + b);
    word |= static_cast<uint32_t>(other) << (16 + 4 * b);
  }
  if (inside && own == 0) scales[group] = word;

  // A byte a weight, then the neighbour's above.
  const float inverse = 1 / (static_cast<float>(factor) * scale);
  const int64_t row_words = (w.cols + 63) / 64 * 8;
  const int64_t at = begin / 8 + own / 2 * 8;
#pragma unroll
  for (int i = 0; i < SUBGROUP / 4; i++) {
    uint32_t bytes = 0;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int value = usual ? static_cast<int>(nearest(x[4 * i + j] * inverse)) : 0;
      bytes |= static_cast<uint32_t>(value + 8) << (8 * j);
    }
    const uint32_t above = __shfl_down_sync(0xffffffff, bytes, 1);
    if (inside && own % 2 == 0 && at < row_words) q[row * row_words + at + i] = bytes | above << 4;
  }
}

unsigned blocks_of(int64_t threads) {
  return static_cast<unsigned>((threads + THREADS - 1) / THREADS);
}

}  // namespace

void quantize_weight(int32_t stored, const void* from, int64_t rows, int64_t cols, int32_t dtype,
                     void* data, void* scales, cudaStream_t stream) {
  const Matrix w{from, stored, rows, cols};
  const int64_t groups = rows * w.groups();
  if (dtype == MOELA_INT8) {
    launch(stream, int8_kernel, blocks_of(groups * 32), THREADS, w, static_cast<int8_t*>(data),
           static_cast<uint16_t*>(scales));
  } else if (dtype == MOELA_INT4) {
    launch(stream, int4_kernel, blocks_of(groups * SUBGROUPS), THREADS, w,
           static_cast<uint32_t*>(data), static_cast<uint32_t*>(scales));
  } else {
    const int64_t blocks = (rows + GROUP - 1) / GROUP * w.groups();
    launch(stream, fp8_kernel, static_cast<unsigned>(blocks), THREADS, w,
           static_cast<uint8_t*>(data), static_cast<float*>(scales));
  }
}

}  // namespace moela::cuda
