// Weights come from mapped files in place, are converted while they load, or are generated.
#include <algorithm>
#include <utility>

#include "runtime/convert.h"
#include "runtime/error.h"
#include "runtime/model.h"

namespace moela {
namespace {

// Keeps sizes in bytes within 64 bits.
constexpr int64_t MAX_ELEMENTS = int64_t{1} << 46;

struct Progress {
  int32_t* control;
  bool cancelled() const { return control && __atomic_load_n(control, __ATOMIC_RELAXED) != 0; }
  void report(int64_t done, int64_t total) const {
    if (control) __atomic_store_n(control + 1, int32_t(done * 1000 / total), __ATOMIC_RELAXED);
  }
};

void check(const moela_model& model, const moela_weight_desc& desc,
           const moela_weight_part* parts) {
  require(desc.rows > 0 && desc.cols > 0 && desc.count > 0, "a weight has no elements");
  require(desc.rows <= INT32_MAX && desc.cols <= INT32_MAX && desc.count <= 65536,
          "a weight is larger than any model's");
  require(desc.count <= MAX_ELEMENTS / desc.rows / desc.cols,
          "a weight is larger than any model's");
  const auto runs = [](int32_t dtype) {
    return dtype == MOELA_F32 || dtype == MOELA_BF16 || weight_has_scales(dtype);
  };
  require(runs(desc.stored) || desc.stored == MOELA_F16,
          "weights are stored as f32, bf16, f16, fp8, int8 or int4");
  require(runs(desc.dtype), "weights run in f32, bf16, fp8, int8 or int4");
  const int32_t n_files = static_cast<int32_t>(model.files.size());
  for (int32_t i = 0; i < desc.count; i++) {
    require(parts[i].file >= -1 && parts[i].file < n_files, "a weight's file does not exist");
    require(parts[i].file >= 0 || desc.stored == MOELA_F32 || desc.stored == MOELA_BF16,
            "a generated weight is made in f32 or bf16");
    require(!weight_has_scales(desc.stored) ||
                (parts[i].scale_file >= 0 && parts[i].scale_file < n_files),
            "an fp8, int8 or int4 weight needs its scales");
  }
}

StoredMatrix stored_matrix(const moela_model& model, const moela_weight_desc& desc,
                           const moela_weight_part& part) {
  if (part.file < 0) return {nullptr, nullptr, part.offset};
  const MatrixBytes bytes = matrix_bytes(desc.stored, desc.rows, desc.cols);
  StoredMatrix matrix{model.files[part.file]->range(part.offset, bytes.data), nullptr, 0};
  if (bytes.scales) {
    matrix.scales = model.files[part.scale_file]->range(part.scale_offset, bytes.scales);
  }
  return matrix;
}

void fill(moela_model& model, const moela_weight_desc& desc, const moela_weight_part* parts,
          StoredWeight& weight, const Progress& progress) {
  moela_device& device = *model.device;
  // All places are checked before anything is allocated by the sizes they are said to have.
  std::vector<StoredMatrix> sources;
  for (int32_t p = 0; p < desc.count; p++) {
    sources.push_back(stored_matrix(model, desc, parts[p]));
  }
  const MatrixBytes bytes = matrix_bytes(desc.dtype, desc.rows, desc.cols);
  // All matrices, then all scales.
  const uint64_t scales_at = (bytes.data * desc.count + 63) / 64 * 64;
  weight.memory = Block(scales_at + bytes.scales * desc.count, "weights");
  const int64_t block = convert_block(desc), tasks = (desc.rows + block - 1) / block;
  std::lock_guard lock(device.mutex);
  std::vector<std::vector<float>> rooms(device.threads->count());
  for (auto& room : rooms) room.resize(convert_room(desc));
  for (int32_t p = 0; p < desc.count; p++) {
    char* data = weight.memory.data() + p * bytes.data;
    char* scales = weight.memory.data() + scales_at + p * bytes.scales;
    weight.view.parts.push_back(data);
    if (bytes.scales) weight.view.scales.push_back(scales);
    device.threads->parallel_for(tasks, [&](int64_t task, int thread) {
      if (progress.cancelled()) return;
      const int64_t begin = task * block;
      convert_rows(desc, sources[p], begin, std::min(begin + block, desc.rows),
                   rooms[thread].data(), data, scales);
    });
    if (progress.cancelled()) throw Error(MOELA_ERR_CANCELLED, "loading was cancelled");
    progress.report(p + 1, desc.count);
  }
}

}  // namespace
}  // namespace moela

using namespace moela;

int32_t moela_model_add_weight(moela_model* model, const moela_weight_desc* desc,
                               const moela_weight_part* parts, int32_t* control, char* err,
                               size_t err_len) {
  int32_t id = -1;
  const int32_t status = guard(err, err_len, [&] {
    require(model && desc && parts && desc->size == sizeof *desc, "weight of another layout");
    std::lock_guard lock(model->mutex);
    check(*model, *desc, parts);
    StoredWeight weight;
    weight.view = {desc->dtype, desc->rows, desc->cols, {}, {}};
    weight.view.parts.reserve(desc->count);
    bool in_place = desc->stored == desc->dtype;
    for (int32_t i = 0; i < desc->count; i++) in_place = in_place && parts[i].file >= 0;
    if (in_place) {
      for (int32_t i = 0; i < desc->count; i++) {
        const StoredMatrix matrix = stored_matrix(*model, *desc, parts[i]);
        weight.view.parts.push_back(matrix.data);
        if (matrix.scales) weight.view.scales.push_back(matrix.scales);
      }
      const MatrixBytes bytes = matrix_bytes(desc->dtype, desc->rows, desc->cols);
      weight.mapped_bytes = (bytes.data + bytes.scales) * desc->count;
      model->backend->hold_weight(weight, control);
    } else if (!model->backend->make_weight(*desc, parts, weight, control)) {
      fill(*model, *desc, parts, weight, Progress{control});
      model->backend->hold_weight(weight, control);
    }
    model->weights.push_back(std::move(weight));
    id = static_cast<int32_t>(model->weights.size()) - 1;
  });
  return status == MOELA_OK ? id : -status;
}

int32_t moela_model_add_constant(moela_model* model, int32_t dtype, int32_t count, int64_t rows,
                                 int64_t cols, const void* data, uint64_t bytes, char* err,
                                 size_t err_len) {
  int32_t id = -1;
  const int32_t status = guard(err, err_len, [&] {
    require(model && data, "constant without model or data");
    require(dtype == MOELA_F32 || dtype == MOELA_BF16 || dtype == MOELA_I32 || dtype == MOELA_F64,
            "constants are f32, bf16, i32 or f64");
    require(count > 0 && rows > 0 && cols > 0 && count <= 65536 && rows <= INT32_MAX &&
                cols <= INT32_MAX && count <= MAX_ELEMENTS / rows / cols,
            "constant is empty or too large");
    const uint64_t part = static_cast<uint64_t>(rows * cols * dtype_bytes(dtype));
    require(bytes == part * count, "constant's bytes do not fit its shape");
    std::lock_guard lock(model->mutex);
    StoredWeight weight;
    weight.constant.assign(static_cast<const char*>(data), static_cast<const char*>(data) + bytes);
    weight.view = {dtype, rows, cols, {}, {}};
    for (int32_t i = 0; i < count; i++) {
      weight.view.parts.push_back(weight.constant.data() + i * part);
    }
    model->backend->hold_weight(weight, nullptr);
    model->weights.push_back(std::move(weight));
    id = static_cast<int32_t>(model->weights.size()) - 1;
  });
  return status == MOELA_OK ? id : -status;
}

int32_t moela_model_read_weight(moela_model* model, int32_t weight, int32_t part, float* out,
                                uint64_t out_bytes, char* err, size_t err_len) {
  return guard(err, err_len, [&] {
    require(model && out, "nothing to read into");
    std::lock_guard lock(model->mutex);
    require(weight >= 0 && weight < static_cast<int32_t>(model->weights.size()), "no such weight");
    const Weight& view = model->weights[weight].view;
    require(part >= 0 && part < static_cast<int32_t>(view.parts.size()), "no such part");
    require(view.dtype == MOELA_F32 || view.dtype == MOELA_BF16 || weight_has_scales(view.dtype),
            "the constant is not f32 or bf16");
    require(out_bytes == static_cast<uint64_t>(view.rows * view.cols * 4), "size of the output");
    // To the host first, where the device's memory is not.
    const MatrixBytes bytes = matrix_bytes(view.dtype, view.rows, view.cols);
    std::vector<char> data(bytes.data), scales(bytes.scales);
    model->device->copy_out(data.data(), view.parts[part], bytes.data);
    if (bytes.scales) {
      model->device->copy_out(scales.data(), view.scales[part], bytes.scales);
    }
    for (int64_t row = 0; row < view.rows; row++) {
      dequantize_row(view.dtype, row, view.cols, data.data(), scales.data(), out + row * view.cols);
    }
  });
}
