#include "runtime/convert.h"

#include <algorithm>
#include <vector>

#include "cpu/generate.h"
#include "runtime/error.h"

namespace moela {
namespace {

// Rows of a type without scales: few enough to cancel soon.
constexpr int64_t ROWS = 16;

bool generates_in_place(const moela_weight_desc& desc, const StoredMatrix& from) {
  return !from.data && desc.stored == desc.dtype;
}

}  // namespace

MatrixBytes matrix_bytes(int32_t dtype, int64_t rows, int64_t cols) {
  return {static_cast<uint64_t>(rows * weight_row_bytes(dtype, cols)),
          static_cast<uint64_t>(scale_bytes(dtype, rows, cols))};
}

int64_t convert_block(const moela_weight_desc& desc) {
  return std::max(ROWS, quantize_block(desc.dtype));
}

int64_t convert_room(const moela_weight_desc& desc) { return convert_block(desc) * desc.cols; }

void convert_rows(const moela_weight_desc& desc, const StoredMatrix& from, int64_t begin,
                  int64_t end, float* room, char* data, char* scales) {
  const int64_t cols = desc.cols, rows = end - begin;
  const auto make = [&](int32_t dtype, void* out) {
    generate(desc.seed, from.key, begin * cols, rows * cols, desc.mean, desc.deviation, dtype, out);
  };
  char* to = data + begin * weight_row_bytes(desc.dtype, cols);
  if (generates_in_place(desc, from)) return make(desc.dtype, to);
  // Where the result is f32 it needs no other room.
  float* values = desc.dtype == MOELA_F32 ? reinterpret_cast<float*>(to) : room;
  if (from.data) {
    for (int64_t row = begin; row < end; row++) {
      dequantize_row(desc.stored, row, cols, from.data, from.scales, values + (row - begin) * cols);
    }
  } else {
    // Generated as it would be stored, then widened from the end on.
    make(desc.stored, values);
    if (desc.stored == MOELA_BF16) {
      for (int64_t i = rows * cols - 1; i >= 0; i--) {
        const float value = bf16_to_f32(load_at<uint16_t>(values, i));
        memcpy(values + i, &value, sizeof value);
      }
    }
  }
  if (desc.dtype == MOELA_BF16) {
    uint16_t* halves = reinterpret_cast<uint16_t*>(to);
    for (int64_t i = 0; i < rows * cols; i++) halves[i] = f32_to_bf16(values[i]);
  } else if (weight_has_scales(desc.dtype)) {
    quantize_rows(desc.dtype, begin, rows, cols, values, data, scales);
  }
}

}  // namespace moela

int32_t moela_convert(const moela_weight_desc* desc, const void* data, uint64_t data_bytes,
                      const void* scales, uint64_t scale_bytes, void* out, uint64_t out_bytes,
                      void* out_scales, uint64_t out_scale_bytes, char* err, size_t err_len) {
  using namespace moela;
  return guard(err, err_len, [&] {
    require(desc && desc->size == sizeof *desc && data && out, "nothing to convert");
    const auto known = [](int32_t dtype) {
      return dtype == MOELA_F32 || dtype == MOELA_BF16 || weight_has_scales(dtype);
    };
    require(known(desc->stored) || desc->stored == MOELA_F16, "converts weights");
    require(known(desc->dtype), "weights run in f32, bf16, fp8, int8 or int4");
    require(desc->count == 1 && desc->rows > 0 && desc->cols > 0 && desc->rows <= INT32_MAX &&
                desc->cols <= INT32_MAX,
            "converts one matrix");
    const MatrixBytes from = matrix_bytes(desc->stored, desc->rows, desc->cols);
    const MatrixBytes to = matrix_bytes(desc->dtype, desc->rows, desc->cols);
    require(data_bytes == from.data && scale_bytes == from.scales && out_bytes == to.data &&
                out_scale_bytes == to.scales,
            "bytes do not fit the shape");
    require((scales || !from.scales) && (out_scales || !to.scales), "scales are missing");
    const StoredMatrix matrix{static_cast<const char*>(data), static_cast<const char*>(scales), 0};
    std::vector<float> room(convert_room(*desc));
    const int64_t block = convert_block(*desc);
    for (int64_t row = 0; row < desc->rows; row += block) {
      convert_rows(*desc, matrix, row, std::min(row + block, desc->rows), room.data(),
                   static_cast<char*>(out), static_cast<char*>(out_scales));
    }
  });
}
