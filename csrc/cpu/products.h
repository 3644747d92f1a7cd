// How operations multiply rows with a weight, whatever its type.
#pragma once

#include <vector>

#include "formats.h"
#include "tasks.h"

namespace moela {

// Rows `first` and on of a part.
inline WeightRows weight_rows(const Weight& weight, int64_t part, int64_t first) {
  const char* scales =
      weight.scales.empty() ? nullptr : static_cast<const char*>(weight.scales[part]);
  return {weight.dtype, weight.cols, static_cast<const char*>(weight.parts[part]), scales, first};
}

// c [m, n] (+)= a [m, cols] times rows b.first + j; products in f32.
inline void product_nt(const Kernels& kernels, const WeightRows& b, int64_t m, int64_t n,
                       const float* a, int64_t lda, float* c, int64_t ldc, bool add) {
  if (weight_has_scales(b.dtype)) return kernels.gemm_nt_scaled(b, m, n, a, lda, c, ldc, add);
  kernels.gemm_nt(b.dtype, m, n, b.cols, a, lda,
                  b.data + b.first * weight_row_bytes(b.dtype, b.cols), b.cols, c, ldc, add);
}

// c [m, cols] (+)= a [m, k] times rows b.first + l, all their columns; products in f32.
inline void product_nn(const Kernels& kernels, const WeightRows& b, int64_t m, int64_t k,
                       const float* a, int64_t lda, float* c, int64_t ldc, bool add) {
  if (weight_has_scales(b.dtype)) return kernels.gemm_nn_scaled(b, m, k, a, lda, c, ldc, add);
  kernels.gemm_nn(b.dtype, m, b.cols, k, a, lda,
                  b.data + b.first * weight_row_bytes(b.dtype, b.cols), b.cols, c, ldc, add);
}

// Whether products with this type take packed rows.
inline bool packs(const Kernels& kernels, int32_t dtype) {
  return kernels.packed_bytes(dtype, 1, 1) > 0;
}

// The rows of an operation, packed once, a block of them together, for all of its tasks.
class PackedBlocks {
 public:
  // counts: rows of each block, k elements each.
  PackedBlocks(const Kernels& kernels, int32_t dtype, int64_t k, const std::vector<int64_t>& counts)
      : kernels_(kernels), dtype_(dtype), k_(k), counts_(counts) {
    for (int64_t count : counts) {
      offsets_.push_back(bytes_);
      bytes_ += kernels.packed_bytes(dtype, count, k);
    }
  }

  // Memory that pack() needs.
  int64_t floats() const { return bytes_ / 4 + 16; }

  // row(block, i): row i of a block. `memory` has floats().
  template <class Row>
  void pack(Context& context, float* memory, const Row& row) {
    base_ = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64);
    context.threads.parallel_for(counts_.size(), [&](int64_t block, int) {
      // No block has more rows.
      const float* rows[MAX_ROWS];
      for (int64_t i = 0; i < counts_[block]; i++) rows[i] = row(block, i);
      kernels_.pack(dtype_, counts_[block], k_, rows, base_ + offsets_[block]);
    });
  }

  const char* block(int64_t i) const { return base_ + offsets_[i]; }

  static constexpr int64_t MAX_ROWS = 96;

 private:
  const Kernels& kernels_;
  int32_t dtype_;
  int64_t k_;
  const std::vector<int64_t>& counts_;
  std::vector<int64_t> offsets_;
  int64_t bytes_ = 0;
  char* base_ = nullptr;
};

}  // namespace moela
