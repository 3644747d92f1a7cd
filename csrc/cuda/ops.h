// Every operation of a program on CUDA: its launcher here, one file each beside this one. The same
// names and meanings as cpu/ops.h; pointers are to device memory.
//
// A launch is captured once into a graph and replayed for steps of any content, so nothing of a
// step is known on the host but its bucket: counts, lengths, pages and experts are read on the
// device. Rows past the real count are inert.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "moela.h"

namespace moela::cuda {

// A value of the workspace, row-major. F32, I32, or BF16 where only products read it: a product
// rounds its input to bf16 in any case, so that the choice changes no bit.
struct Tensor {
  void* data;
  int32_t dtype;
};

// `count` matrices [rows, cols] of a type of moela_weight_desc: part p begins at
// data + p * part_bytes, its scales at scales + p * scale_part_bytes. All are 256-byte aligned, and
// 256 readable bytes follow the last.
struct Weight {
  int32_t dtype;
  int32_t count;
  int64_t rows;
  int64_t cols;
  const char* data;
  int64_t part_bytes;
  const char* scales;
  int64_t scale_part_bytes;
};

// Pages of one cache type: see moela_pool_desc.
struct PagePool {
  int32_t dtype;
  int32_t layers;
  int32_t kv_lora_rank;
  int32_t qk_rope_head_dim;
  int64_t row_bytes;    // of a token's elements in a layer
  int64_t layer_bytes;  // of a page's layer, scales included
  int64_t page_bytes;
  char* base;

  // First row of a page's layer; the scales' codes follow MOELA_PAGE_TOKENS rows.
  __host__ __device__ char* at(int64_t page, int64_t layer) const {
    return base + page * page_bytes + layer * layer_bytes;
  }
  __host__ __device__ uint8_t* scales_at(int64_t page, int64_t layer) const {
    return reinterpret_cast<uint8_t*>(at(page, layer) + MOELA_PAGE_TOKENS * row_bytes);
  }
};

struct Counts {
  int32_t n_rows;
  int32_t n_absorbed;
  int32_t n_segments;
  int32_t n_logits;  // of the block of logits rows at hand
};

// A step in device memory. Fixed addresses, contents written before each replay.
struct Step {
  const Counts* counts;
  const int32_t* tokens;          // [n_rows]
  const int32_t* positions;       // [n_rows]
  const int32_t* row_segment;     // [n_rows]
  const moela_segment* segments;  // [n_segments]
  const int32_t* pages;
  const PagePool* pools;
  const int32_t* logit_rows;      // [n_logits]

  // Rows of a moela_rows: [begin, end). On the device only.
  __device__ int begin(int rows) const {
    return rows == MOELA_ROWS_PROJECTED ? counts->n_absorbed : 0;
  }
  __device__ int end(int rows) const {
    return rows == MOELA_ROWS_ABSORBED ? counts->n_absorbed
           : rows == MOELA_ROWS_LOGITS ? counts->n_logits
                                       : counts->n_rows;
  }
};

// Where and how an operation is launched.
struct Launch {
  cudaStream_t stream;
  Step step;
  int32_t bucket;        // rows (or logits rows) of the step at most: what grids are sized for
  int32_t sms;           // multiprocessors
  bool hopper;           // sm_90a kernels may be used
  bool overlap;          // programmatic dependent launch: see launch.h
  char* scratch;         // for the operation at hand alone; zero before the first replay, and every
  int64_t scratch_bytes; // operation that needs it zero leaves it zero
};

}  // namespace moela::cuda
