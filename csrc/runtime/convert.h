// A stored matrix in the type that it runs in. No device takes part: the host's memory is filled,
// and a device with memory of its own copies from there.
#pragma once

#include <cstdint>

#include "cpu/quantize.h"
#include "moela.h"

namespace moela {

// One of a weight's matrices as desc.stored; data NULL: generated.
struct StoredMatrix {
  const char* data;
  const char* scales;  // NULL for types without
  uint64_t key;        // of a generated one
};

// Bytes of a matrix, and of its scales after it (0 for types without).
struct MatrixBytes {
  uint64_t data;
  uint64_t scales;
};
MatrixBytes matrix_bytes(int32_t dtype, int64_t rows, int64_t cols);

// Rows that convert_rows() takes together at least, but for the last: a multiple of it begins each
// call. Room, in floats, that it needs.
int64_t convert_block(const moela_weight_desc& desc);
int64_t convert_room(const moela_weight_desc& desc);

// Rows [begin, end), at most convert_block() of them, to desc.dtype: `data` and `scales` are those
// of the whole matrix.
void convert_rows(const moela_weight_desc& desc, const StoredMatrix& from, int64_t begin,
                  int64_t end, float* room, char* data, char* scales);

}  // namespace moela
