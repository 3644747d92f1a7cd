// What the parts of small_ops share: a step of random content, on the host and on the device.
#pragma once

#include <memory>

#include "support.cuh"
// After it: both libraries have a Weight.
#include "cpu/ops.h"
#include "cuda/scratch.h"

namespace bench {

extern int failures;
void report(const char* what, const std::string& which, double error, double most);
void check_sampling_ops();
void time_ops();

template <class T>
struct Device {
  T* data = nullptr;
  int64_t count;
  explicit Device(int64_t n) : count(n) { OK(cudaMalloc(&data, n * sizeof(T) + 256)); }
  explicit Device(const std::vector<T>& from) : Device(static_cast<int64_t>(from.size())) {
    write(from);
  }
  Device(const Device&) = delete;
  ~Device() { cudaFree(data); }
  void write(const std::vector<T>& from) {
    OK(cudaMemcpy(data, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> read() const { return bench::read(data, count); }
};

// A weight on both.
struct Matrix {
  std::shared_ptr<std::vector<char>> host;
  std::shared_ptr<Device<char>> device;
  moela::Weight cpu;
  cuda::Weight gpu{};
};

struct Pool {
  cuda::PagePool view{};
  Device<char> memory;
  static int64_t row_bytes_of(int dtype, int width) {
    return dtype == MOELA_INT6 ? width / 4 * 3
                               : width * (dtype == MOELA_F32    ? 4
                                          : dtype == MOELA_BF16 ? 2
                                                                : 1);
  }
  static int64_t layer_bytes_of(int dtype, int width) {
    return 64 * (row_bytes_of(dtype, width) + (dtype <= MOELA_BF16 ? 0 : 2));
  }
  // Of 3 layers.
  Pool(int dtype, int r, int dr, int pages) : memory(3 * layer_bytes_of(dtype, r + dr) * pages) {
    view.dtype = dtype;
    view.layers = 3;
    view.kv_lora_rank = r;
    view.qk_rope_head_dim = dr;
    view.row_bytes = row_bytes_of(dtype, r + dr);
    view.layer_bytes = layer_bytes_of(dtype, r + dr);
    view.page_bytes = 3 * view.layer_bytes;
    view.base = memory.data;
    OK(cudaMemset(memory.data, 0xcd, memory.count));
  }
};

// Segments of up to 8 rows at random positions; the bucket is a few rows larger than the step.
struct Host {
  int n_rows, n_absorbed, bucket, n_pages = 0;
  std::mt19937 random;
  std::vector<int32_t> tokens, positions, row_segment, pages, logit_rows;
  std::vector<moela_segment> segments;
  std::vector<cuda::Counts> counts;
  std::vector<moela::PagePool> cpu_pools;
  moela::StepView view{};
  moela::Threads threads{1};
  std::vector<moela::Scratch> scratch;
  moela::Context context;
  Device<int32_t> d_tokens, d_positions, d_row_segment, d_pages, d_logit_rows;
  Device<moela_segment> d_segments;
  Device<cuda::Counts> d_counts;
  Device<cuda::PagePool> d_pools;
  Device<char> d_scratch;

  explicit Host(int rows, int absorbed, int64_t scratch_bytes = 1 << 20)
      : n_rows(rows),
        n_absorbed(std::min(absorbed, rows)),
        bucket(rows + 3),
        random(rows * 77 + absorbed),
        tokens(bucket),
        positions(bucket),
        row_segment(bucket),
        pages(4 * bucket),
        logit_rows(bucket),
        segments(bucket),
        counts(1),
        cpu_pools(1),
        scratch(1),
        context{moela::reference_kernels(), threads, scratch, view, nullptr},
        d_tokens(bucket),
        d_positions(bucket),
        d_row_segment(bucket),
        d_pages(4 * bucket),
        d_logit_rows(bucket),
        d_segments(bucket),
        d_counts(1),
        d_pools(1),
        d_scratch(scratch_bytes) {
    int n_segments = 0;
    for (int row = 0; row < n_rows; n_segments++) {
      moela_segment& s = segments[n_segments];
      const int left = (row < n_absorbed ? n_absorbed : n_rows) - row;
      s = {row, std::min<int>(left, 1 + random() % 8), static_cast<int>(random() % 240), 0, n_pages,
           4};
      for (int i = 0; i < s.rows; i++, row++) {
        positions[row] = s.position + i;
        row_segment[row] = n_segments;
        tokens[row] = random() % 300;
        logit_rows[row] = random() % n_rows;
      }
      for (int i = 0; i < 4; i++) pages[n_pages++] = 0;
    }
    for (int i = 0; i < n_pages; i++) pages[i] = i;
    std::shuffle(pages.begin(), pages.begin() + n_pages, random);
    counts[0] = {n_rows, n_absorbed, n_segments, n_rows};
    d_tokens.write(tokens);
    d_positions.write(positions);
    d_row_segment.write(row_segment);
    d_pages.write(pages);
    d_logit_rows.write(logit_rows);
    d_segments.write(segments);
    d_counts.write(counts);
    view.n_rows = n_rows;
    view.n_absorbed = n_absorbed;
    view.n_segments = n_segments;
    view.tokens = tokens.data();
    view.positions = positions.data();
    view.row_segment = row_segment.data();
    view.segments = segments.data();
    view.pages = pages.data();
    view.pools = cpu_pools.data();
    view.n_logits = n_rows;
    view.logit_rows = logit_rows.data();
    // Not to be read as zero by chance.
    OK(cudaMemset(d_scratch.data, 0xab, d_scratch.count));
  }
  Host(const Host&) = delete;

  cuda::Launch launch(cudaStream_t stream = nullptr) const {
    cuda::Launch at{};
    at.stream = stream;
    at.step = {d_counts.data,   d_tokens.data, d_positions.data, d_row_segment.data,
               d_segments.data, d_pages.data,  d_pools.data,     d_logit_rows.data};
    at.bucket = bucket;
    at.absorbed = std::min(n_absorbed + 2, bucket);
    at.sms = 132;
    at.hopper = at.overlap = true;
    at.scratch = d_scratch.data;
    at.scratch_bytes = d_scratch.count;
    return at;
  }
  std::vector<float> floats(int64_t n, float deviation) {
    std::normal_distribution<float> normal(0, deviation);
    std::vector<float> x(n);
    for (float& v : x) v = normal(random);
    return x;
  }
  Matrix matrix(int dtype, int64_t rows, int64_t cols, float deviation = 1) {
    const std::vector<float> x = floats(rows * cols, deviation);
    Matrix m;
    m.host = std::make_shared<std::vector<char>>(rows * cols * (dtype == MOELA_F32 ? 4 : 2));
    for (int64_t i = 0; i < rows * cols; i++) {
      const uint32_t bits = as_bits(dtype == MOELA_F32 ? x[i] : round_bf16(x[i]));
      if (dtype == MOELA_F32) memcpy(m.host->data() + 4 * i, &bits, 4);
      const uint16_t half = bits >> 16;
      if (dtype == MOELA_BF16) memcpy(m.host->data() + 2 * i, &half, 2);
    }
    m.device = std::make_shared<Device<char>>(*m.host);
    m.cpu = {dtype, rows, cols, {m.host->data()}, {}};
    m.gpu.dtype = dtype;
    m.gpu.count = 1;
    m.gpu.rows = rows;
    m.gpu.cols = cols;
    m.gpu.data = m.device->data;
    return m;
  }
  void set_pool(const Pool& pool) { d_pools.write({pool.view}); }
  void set_cpu_pool(int dtype, int r, int dr, char* base) {
    cpu_pools[0] = {dtype, 3, r, dr, n_pages, base};
  }
};

}  // namespace bench
