// What mla_decode.cu reads: caches of every type, steps of many sequences, and references in f64.
#pragma once

#include "cuda/mla_decode.cuh"

#include <cuda_bf16.h>

#include <functional>
#include <numeric>

#include "support.cuh"

namespace bench {
namespace {

struct Pool {
  PagePool on_device;
  int dtype;
};

__global__ void fill_pool(PagePool p, uint64_t seed, int64_t bytes) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < bytes;
       i += int64_t(gridDim.x) * blockDim.x) {
    const uint32_t h = hash(seed * 0x9e3779b97f4a7c15ULL + i);
    const float unit = float(h >> 8) / 8388608.0f - 1;
    if (p.dtype == MOELA_F32) {
      if (i % 4 == 0) *reinterpret_cast<float*>(p.base + i) = unit;
    } else if (p.dtype == MOELA_BF16) {
      if (i % 2 == 0) {
        uint32_t bits;
        memcpy(&bits, &unit, 4);
        *reinterpret_cast<uint16_t*>(p.base + i) = bits >> 16;
      }
    } else {
      const int64_t in_layer = i % p.layer_bytes;
      uint8_t byte = h & 255;
      if (in_layer >= MOELA_PAGE_TOKENS * p.row_bytes) {
        // Scales that give about one at the largest.
        const bool key = (in_layer - MOELA_PAGE_TOKENS * p.row_bytes) % 2 == 1;
        const int code = key                     ? 8 * 17
                         : p.dtype == MOELA_FP8  ? 8 * 15
                         : p.dtype == MOELA_INT8 ? 8 * 17
                                                 : 8 * 19;
        byte = code + byte % 8;
      } else if (in_layer % p.row_bytes >= p.row_bytes - p.qk_rope_head_dim) {
        if (byte == 128) byte = 0;
      } else if (p.dtype == MOELA_FP8 && (byte & 127) == 127) {
        byte = 0;
      } else if (p.dtype == MOELA_INT8 && byte == 128) {
        byte = 0;
      }
      p.base[i] = byte;
    }
  }
}
__global__ void poison(PagePool p, int page, int token) {
  for (int layer = 0; layer < p.layers; layer++) {
    char* row = p.at(page, layer) + token * p.row_bytes;
    const int64_t bytes = (MOELA_PAGE_TOKENS - token) * p.row_bytes;
    for (int64_t i = threadIdx.x; i < bytes; i += blockDim.x) row[i] = char(255);
  }
}

PagePool make_pool(int dtype, int layers, int r, int dr, int pages, uint64_t seed) {
  PagePool p{};
  p.dtype = dtype;
  p.layers = layers;
  p.kv_lora_rank = r;
  p.qk_rope_head_dim = dr;
  const int width = r + dr;
  p.row_bytes = dtype == MOELA_F32    ? 4 * width
                : dtype == MOELA_BF16 ? 2 * width
                : dtype == MOELA_INT6 ? width / 16 * 12
                                      : width;
  const bool scaled = dtype != MOELA_F32 && dtype != MOELA_BF16;
  p.layer_bytes = MOELA_PAGE_TOKENS * (p.row_bytes + (scaled ? 2 : 0));
  p.page_bytes = layers * p.layer_bytes;
  const int64_t bytes = p.page_bytes * pages;
  OK(cudaMalloc(&p.base, bytes + 256));
  fill_pool<<<1056, 256>>>(p, seed, bytes);
  OK(cudaGetLastError());
  return p;
}

// A step in device memory.
struct Sequence {
  int pool, context, rows;  // the last `rows` of `context` tokens are rows of the step
};
struct TestStep {
  Step step{};
  int rows = 0;
  std::vector<void*> owned;
  std::vector<moela_segment> segments;
  std::vector<int> pages, positions, row_segment;

  template <class T>
  const T* upload(const std::vector<T>& v) {
    void* p;
    OK(cudaMalloc(&p, v.size() * sizeof(T) + 256));
    OK(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
    owned.push_back(p);
    return static_cast<const T*>(p);
  }
  ~TestStep() {
    for (void* p : owned) cudaFree(p);
  }
};

// Sequence i has the pages of `places[i]`.
void make_step(TestStep& t, const std::vector<Sequence>& sequences,
               const std::vector<std::vector<int>>& places, const std::vector<PagePool>& pools) {
  for (size_t i = 0; i < sequences.size(); i++) {
    const Sequence& s = sequences[i];
    moela_segment segment{
        t.rows, s.rows, s.context - s.rows, s.pool, int(t.pages.size()), int(places[i].size())};
    t.pages.insert(t.pages.end(), places[i].begin(), places[i].end());
    for (int j = 0; j < s.rows; j++) {
      t.positions.push_back(segment.position + j);
      t.row_segment.push_back(int(i));
    }
    t.rows += s.rows;
    t.segments.push_back(segment);
  }
  t.step.counts = t.upload(std::vector<Counts>{{t.rows, t.rows, int(sequences.size()), 0}});
  t.step.positions = t.upload(t.positions);
  t.step.row_segment = t.upload(t.row_segment);
  t.step.segments = t.upload(t.segments);
  t.step.pages = t.upload(t.pages);
  t.step.pools = t.upload(pools);
}
// Pages shuffled over each pool.
std::vector<std::vector<int>> shuffled(const std::vector<Sequence>& sequences, int n_pools,
                                       int max_pages, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::vector<int>> free(n_pools), places;
  for (auto& f : free) {
    f.resize(max_pages);
    std::iota(f.begin(), f.end(), 0);
    std::shuffle(f.begin(), f.end(), random);
  }
  for (const Sequence& s : sequences) {
    std::vector<int> own;
    for (int i = 0; i < (s.context + 63) / 64; i++) {
      own.push_back(free[s.pool].back());
      free[s.pool].pop_back();
    }
    places.push_back(own);
  }
  return places;
}

char* scratch_memory;
int64_t scratch_size = int64_t{256} << 20;
int sms;
cudaStream_t stream;

Launch make_launch(const Step& step, int rows, bool hopper, bool overlap) {
  Launch at{};
  at.stream = stream;
  at.step = step;
  at.bucket = at.absorbed = rows;
  at.sms = sms;
  at.hopper = hopper;
  at.overlap = overlap;
  at.scratch = scratch_memory;
  at.scratch_bytes = scratch_size;
  return at;
}

__device__ double rounded(double x, bool bf16) {
  return bf16 ? double(__bfloat162float(__float2bfloat16_rn(float(x)))) : x;
}
__device__ double reference_element(const PagePool& p, int page, int layer, int token, int i) {
  const char* row = p.at(page, layer) + token * p.row_bytes;
  if (p.dtype == MOELA_F32) return reinterpret_cast<const float*>(row)[i];
  if (p.dtype == MOELA_BF16) {
    return __uint_as_float(uint32_t(reinterpret_cast<const uint16_t*>(row)[i]) << 16);
  }
  const int code = p.scales_at(page, layer)[2 * token + (i >= p.kv_lora_rank)];
  const double scale = code == 0 ? 0 : ldexp(8.0 + code % 8, code / 8 - 27);
  const int r = p.kv_lora_rank, dr = p.qk_rope_head_dim;
  if (i >= r) return static_cast<int8_t>(row[p.row_bytes - dr + (i - r)]) * scale;
  if (p.dtype == MOELA_INT8) return static_cast<int8_t>(row[i]) * scale;
  if (p.dtype == MOELA_FP8) {
    const int b = uint8_t(row[i]), e = b >> 3 & 15, m = b & 7;
    const double v = e ? ldexp(8.0 + m, e - 10) : ldexp(double(m), -9);
    return (b & 128 ? -v : v) * scale;
  }
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(row);
  const int whole = r - 2 * dr;
  if (i < whole) {
    const uint8_t* group = bytes + i / 16 * 12;
    const int j = i % 16;
    const int low = j < 8 ? group[j] & 15 : group[j - 8] >> 4;
    const int up = group[8 + j % 4] >> (2 * (j / 4)) & 3;
    return (low + 16 * up - 32) * scale;
  }
  const int j = (i - whole) % 32;
  const uint8_t* group = bytes + whole / 16 * 12 + (i - whole) / 32 * 20;
  const int low = j < 16 ? group[j] & 15 : group[j - 16] >> 4;
  const int up = group[16 + j % 4] >> (j / 4) & 1;
  return (2 * (low + 16 * up) - 32) * scale;
}

// Grid: (heads, rows). `fast`: queries and elements are rounded to bf16 unless the cache is F32.
__global__ void reference_decode(Step step, int layer, int heads, int r, int dr, const float* q,
                                 bool fast, double* scores, int64_t scores_stride, double* out) {
  const int head = blockIdx.x, row = blockIdx.y;
  const moela_segment s = step.segments[step.row_segment[row]];
  const PagePool& pool = step.pools[s.pool];
  const int keys = step.positions[row] + 1;
  const bool bf16 = fast && pool.dtype != MOELA_F32;
  const int64_t at = int64_t(row) * heads + head;
  double* own = scores + at * scores_stride;
  for (int key = threadIdx.x; key < keys; key += blockDim.x) {
    const int page = step.pages[s.page + key / 64];
    double sum = 0;
    for (int i = 0; i < r + dr; i++) {
      sum += rounded(q[at * (r + dr) + i], bf16) *
             rounded(reference_element(pool, page, layer, key % 64, i), bf16);
    }
    own[key] = sum;
  }
  __syncthreads();
  double most = own[0], total = 0;
  for (int key = 1; key < keys; key++) most = fmax(most, own[key]);
  for (int key = 0; key < keys; key++) total += exp(own[key] - most);
  for (int i = threadIdx.x; i < r; i += blockDim.x) {
    double sum = 0;
    for (int key = 0; key < keys; key++) {
      sum +=
          exp(own[key] - most) *
          rounded(reference_element(pool, step.pages[s.page + key / 64], layer, key % 64, i), bf16);
    }
    out[at * r + i] = sum / total;
  }
}

int failures = 0;

}  // namespace
}  // namespace bench
