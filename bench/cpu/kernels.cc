// Checks every set of CPU kernels that the processor has against the reference, bit by bit where
// they must agree, and times products of 1, 4, 16, 48 and 96 rows on one thread and on all.
//
// Build: g++ -std=c++17 -O3 -ffp-contract=off -Icsrc -Icsrc/include bench/cpu/kernels.cc
//   csrc/cpu/{kernels,gemm}_*.cc csrc/cpu/{quantize,quantize_int4,x86}.cc, each with the flags that
//   csrc/CMakeLists.txt gives it, -pthread
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/quantize.h"
#include "cpu/x86.h"

using namespace moela;

namespace {

const char* const NAMES[] = {"auto", "reference", "avx2", "avx512", "amx"};
const char* type_name(int32_t dtype) {
  return dtype == MOELA_INT8   ? "int8"
         : dtype == MOELA_INT4 ? "int4"
         : dtype == MOELA_FP8  ? "fp8"
                               : "bf16";
}

std::vector<float> normals(int64_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(n);
  for (float& x : out) x = normal(random);
  return out;
}

struct Matrix {
  int32_t dtype;
  int64_t rows, cols;
  std::vector<char> data, scales;
  WeightRows at(int64_t first) const {
    return {dtype, cols, data.data(), scales.empty() ? nullptr : scales.data(), first};
  }
};

Matrix make(int32_t dtype, int64_t rows, int64_t cols, const std::vector<float>& w) {
  Matrix matrix{dtype, rows, cols, {}, {}};
  // Nothing lies beyond: a read past the end is found by a sanitizer.
  matrix.data.resize(rows * weight_row_bytes(dtype, cols));
  matrix.scales.resize(scale_bytes(dtype, rows, cols));
  if (dtype == MOELA_BF16) {
    for (int64_t i = 0; i < rows * cols; i++) {
      const uint16_t half = f32_to_bf16(w[i]);
      memcpy(matrix.data.data() + i * 2, &half, 2);
    }
  } else {
    const int64_t block = quantize_block(dtype);
    for (int64_t row = 0; row < rows; row += block) {
      quantize_rows(dtype, row, std::min(block, rows - row), cols, w.data() + row * cols,
                    matrix.data.data(), matrix.scales.data());
    }
  }
  return matrix;
}

struct Aligned {
  char* data;
  explicit Aligned(int64_t bytes)
      : data(static_cast<char*>(std::aligned_alloc(64, (bytes + 127) / 64 * 64))) {}
  ~Aligned() { std::free(data); }
  Aligned(const Aligned&) = delete;
};

// c [m, n] of rows [first, first + n) of a matrix.
std::vector<float> multiply(const Kernels& kernels, const Matrix& matrix, int64_t first, int64_t n,
                            int64_t m, const std::vector<float>& x, bool add) {
  const int64_t k = matrix.cols;
  std::vector<float> c(m * n, 0.5f);
  const WeightRows b = matrix.at(first);
  if (kernels.packed_bytes(matrix.dtype, 1, 1) == 0) {
    if (matrix.scales.empty()) {
      kernels.gemm_nt(matrix.dtype, m, n, k, x.data(), k,
                      b.data + first * weight_row_bytes(matrix.dtype, k), k, c.data(), n, add);
    } else {
      kernels.gemm_nt_scaled(b, m, n, x.data(), k, c.data(), n, add);
    }
    return c;
  }
  Aligned packed(kernels.packed_bytes(matrix.dtype, m, k));
  std::vector<const float*> rows;
  for (int64_t i = 0; i < m; i++) rows.push_back(x.data() + i * k);
  kernels.pack(matrix.dtype, m, k, rows.data(), packed.data);
  kernels.gemm_packed(b, m, n, packed.data, c.data(), n, add);
  return c;
}

int failures = 0;

void check(const Kernels& kernels, int32_t dtype) {
  const bool exact = dtype == MOELA_INT8 || dtype == MOELA_INT4;
  const int64_t shapes[][2] = {{1, 1},    {3, 7},    {9, 64},    {17, 128}, {5, 100},  {33, 130},
                               {40, 200}, {24, 515}, {41, 1408}, {70, 31},  {16, 2048}};
  double worst = 0;
  int64_t different = 0, uneven = 0;
  for (const auto& shape : shapes) {
    const int64_t rows = shape[0], k = shape[1], first = rows > 20 ? 3 : 0, n = rows - first;
    const auto w = normals(rows * k, 1);
    const Matrix matrix = make(dtype, rows, k, w);
    for (int64_t m : {1, 2, 3, 4, 5, 15, 16, 17, 33, 48, 96}) {
      const auto x = normals(m * k, 2);
      for (bool add : {false, true}) {
        const auto c = multiply(kernels, matrix, first, n, m, x, add);
        const auto expected = multiply(reference_kernels(), matrix, first, n, m, x, add);
        for (int64_t i = 0; i < m * n; i++) {
          different += memcmp(&c[i], &expected[i], 4) != 0;
          worst = std::max(worst, std::fabs(c[i] - expected[i]) / std::sqrt(double(k)));
        }
        // A row alone has the same bits.
        for (int64_t row = 0; row < m; row += 3) {
          const std::vector<float> alone(x.begin() + row * k, x.begin() + (row + 1) * k);
          const auto one = multiply(kernels, matrix, first, n, 1, alone, add);
          uneven += memcmp(one.data(), c.data() + row * n, n * 4) != 0;
        }
      }
    }
  }
  // bf16 inputs are rounded on some sets: 2^-9 of each product.
  const double tolerance = dtype == MOELA_BF16 && kernels.id == MOELA_KERNELS_AMX ? 2e-2 : 1e-5;
  const bool ok = uneven == 0 && worst < tolerance && (!exact || different == 0);
  printf(
      "%-9s %-5s %s: %ld elements differ from the reference, worst %.2g; %ld rows not invariant\n",
      NAMES[kernels.id], type_name(dtype), ok ? "ok" : "FAILED", long(different), worst,
      long(uneven));
  failures += !ok;
}

// Milliseconds of the best of some runs of f on each of `threads`.
template <class F>
double best_time(int threads, const F& f) {
  double best = 1e9;
  for (int run = 0; run < 5; run++) {
    std::vector<std::thread> all;
    const auto start = std::chrono::steady_clock::now();
    for (int t = 1; t < threads; t++) all.emplace_back([&, t] { f(t); });
    f(0);
    for (std::thread& thread : all) thread.join();
    const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
    best = std::min(best, time.count());
  }
  return best;
}

// A matrix of any bytes that are numbers, beyond every cache.
const Matrix& large(int32_t dtype, int64_t rows, int64_t cols) {
  static Matrix matrix;
  matrix = {dtype, rows, cols, {}, {}};
  matrix.data.resize(rows * weight_row_bytes(dtype, cols));
  uint64_t state = 1;
  for (size_t i = 0; i < matrix.data.size(); i += 8) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const uint64_t word =
        dtype == MOELA_BF16 ? state & 0x3fff3fff3fff3fff : state & ~0x8080808080808080;
    memcpy(matrix.data.data() + i, &word, 8);
  }
  matrix.scales.assign(scale_bytes(dtype, rows, cols), 0x3f);
  return matrix;
}

void measure(const Kernels& kernels, int32_t dtype, int threads, int64_t most) {
  const int64_t k = 2048;
  const Matrix& matrix = large(dtype, most, k);
  for (int64_t m : {1, 4, 16, 48, 96}) {
    // Few columns where arithmetic takes the time.
    const int64_t n = m == 1 ? most : most / 16, share = n / threads / 64 * 64;
    const double bytes =
        double(share * threads) / most * (matrix.data.size() + matrix.scales.size());
    const auto x = normals(m * k, 4);
    std::vector<std::vector<float>> c(threads, std::vector<float>(m * 64));
    std::vector<const float*> rows;
    for (int64_t i = 0; i < m; i++) rows.push_back(x.data() + i * k);
    const int64_t packed_bytes = kernels.packed_bytes(dtype, m, k);
    Aligned packed(packed_bytes);
    const double pack_ms = best_time(1, [&](int) {
      if (packed_bytes) kernels.pack(dtype, m, k, rows.data(), packed.data);
    });
    const double ms = best_time(threads, [&](int t) {
      for (int64_t j = t * share; j < (t + 1) * share; j += 64) {
        const WeightRows b = matrix.at(j);
        if (packed_bytes) {
          kernels.gemm_packed(b, m, 64, packed.data, c[t].data(), 64, false);
        } else if (matrix.scales.empty()) {
          kernels.gemm_nt(dtype, m, 64, k, x.data(), k, b.data + j * k * 2, k, c[t].data(), 64,
                          false);
        } else {
          kernels.gemm_nt_scaled(b, m, 64, x.data(), k, c[t].data(), 64, false);
        }
      }
    });
    printf("%-9s %-5s %2d threads %3ld rows: %8.3f ms %7.1f GB/s %8.1f GOP/s, packing %.4f ms\n",
           NAMES[kernels.id], type_name(dtype), threads, long(m), ms, bytes / ms / 1e6,
           2.0 * m * share * threads * k / ms / 1e6, pack_ms);
  }
}

void bandwidth(int threads) {
  const int64_t bytes = int64_t{1} << 28;
  std::vector<uint64_t> memory(bytes / 8, 1);
  std::vector<uint64_t> sums(threads * 8);
  const double ms = best_time(threads, [&](int t) {
    const int64_t share = bytes / 8 / threads;
    uint64_t sum[8] = {};
    for (int64_t i = t * share; i + 8 <= (t + 1) * share; i += 8) {
      for (int lane = 0; lane < 8; lane++) sum[lane] += memory[i + lane];
    }
    for (uint64_t s : sum) sums[t * 8] += s;
  });
  printf("reading, %d threads: %.1f GB/s (%lu)\n", threads, bytes / ms / 1e6,
         static_cast<unsigned long>(sums[0]));
}

}  // namespace

int main(int argc, char**) {
  std::vector<const Kernels*> sets = {&reference_kernels()};
  if (x86_has_avx2()) sets.push_back(&avx2_kernels());
  if (x86_has_avx512()) sets.push_back(&avx512_kernels());
  if (x86_has_amx()) sets.push_back(&amx_kernels());
  const int32_t types[] = {MOELA_INT8, MOELA_INT4, MOELA_FP8, MOELA_BF16};
  for (const Kernels* kernels : sets) {
    for (int32_t dtype : types) check(*kernels, dtype);
  }
  fflush(stdout);
  if (argc > 1) return failures;
  const int all = std::min<int>(std::thread::hardware_concurrency(), 16);
  for (int threads : {1, all}) {
    bandwidth(threads);
    for (const Kernels* kernels : sets) {
      if (kernels->id == MOELA_KERNELS_REFERENCE) continue;
      for (int32_t dtype : types) measure(*kernels, dtype, threads, 131072);
      fflush(stdout);
    }
  }
  return failures;
}
