// Weights come from mapped files in place, are converted while they load, or are generated.
#include <algorithm>
#include <cstring>

#include "cpu/generate.h"
#include "runtime/error.h"
#include "runtime/model.h"

namespace moela {
namespace {

float f16_to_f32(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 31;
  const uint32_t mantissa = half & 0x3ff;
  float magnitude;
  if (exponent == 31) {
    const uint32_t bits = sign | 0x7f800000 | (mantissa << 13);
    memcpy(&magnitude, &bits, 4);
    return magnitude;
  }
  // Subnormals: mantissa * 2^-24; the others have the hidden bit.
  magnitude = exponent == 0 ? mantissa * 0x1p-24f
                            : (1024 + mantissa) * 0x1p-25f *
                                  static_cast<float>(uint32_t{1} << exponent);
  return sign ? -magnitude : magnitude;
}

// E4M3: no infinities, 0x7f and 0xff are NaN, largest 448.
float fp8_to_f32(uint8_t bits) {
  const int exponent = (bits >> 3) & 15;
  const int mantissa = bits & 7;
  float magnitude;
  if (exponent == 15 && mantissa == 7) {
    magnitude = __builtin_nanf("");
  } else {
    magnitude = exponent == 0 ? mantissa * 0x1p-9f
                              : (8 + mantissa) * 0x1p-10f * static_cast<float>(1 << exponent);
  }
  return bits & 0x80 ? -magnitude : magnitude;
}

// Keeps sizes in bytes within 64 bits.
constexpr int64_t MAX_ELEMENTS = int64_t{1} << 46;

struct Source {
  const char* data;    // [rows, cols] of the stored type
  const char* scales;  // FP8: f32 per block of 128 x 128
};

constexpr int64_t FP8_BLOCK = 128;

// Row `row` as f32.
void decode_row(const moela_weight_desc& desc, const Source& source, int64_t row, float* out,
                const Kernels& kernels) {
  const int64_t cols = desc.cols;
  const char* data = source.data + row * cols * dtype_bytes(desc.stored);
  switch (desc.stored) {
    case MOELA_F16:
      for (int64_t i = 0; i < cols; i++) {
        uint16_t half;
        memcpy(&half, data + 2 * i, 2);
        out[i] = f16_to_f32(half);
      }
      break;
    case MOELA_FP8: {
      const int64_t blocks = (cols + FP8_BLOCK - 1) / FP8_BLOCK;
      const char* scales = source.scales + row / FP8_BLOCK * blocks * 4;
      for (int64_t i = 0; i < cols; i++) {
        float scale;
        memcpy(&scale, scales + i / FP8_BLOCK * 4, 4);
        out[i] = fp8_to_f32(static_cast<uint8_t>(data[i])) * scale;
      }
      break;
    }
    default:
      kernels.load(desc.stored, cols, data, out);
  }
}

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
  require(desc.stored == MOELA_F32 || desc.stored == MOELA_BF16 || desc.stored == MOELA_F16 ||
              desc.stored == MOELA_FP8,
          "weights are stored as f32, bf16, f16 or fp8");
  require(desc.dtype == MOELA_F32 || desc.dtype == MOELA_BF16, "weights run in f32 or bf16");
  const int32_t n_files = static_cast<int32_t>(model.files.size());
  for (int32_t i = 0; i < desc.count; i++) {
    require(parts[i].file >= -1 && parts[i].file < n_files, "a weight's file does not exist");
    require(parts[i].file >= 0 || desc.stored == desc.dtype,
            "a generated weight is made in the type that it is wanted in");
    require(desc.stored != MOELA_FP8 || (parts[i].scale_file >= 0 && parts[i].scale_file < n_files),
            "an fp8 weight needs its scales");
  }
}

Source source_of(const moela_model& model, const moela_weight_desc& desc,
                 const moela_weight_part& part) {
  const uint64_t elements = static_cast<uint64_t>(desc.rows) * static_cast<uint64_t>(desc.cols);
  Source source{};
  source.data = model.files[part.file]->range(part.offset, elements * dtype_bytes(desc.stored));
  if (desc.stored == MOELA_FP8) {
    const uint64_t blocks = ((desc.rows + FP8_BLOCK - 1) / FP8_BLOCK) *
                            ((desc.cols + FP8_BLOCK - 1) / FP8_BLOCK);
    source.scales = model.files[part.scale_file]->range(part.scale_offset, blocks * 4);
  }
  return source;
}

// Rows a task converts; a multiple of nothing in particular, small enough to cancel soon.
constexpr int64_t ROWS_PER_TASK = 16;

void fill(moela_model& model, const moela_weight_desc& desc, const moela_weight_part* parts,
          StoredWeight& weight, const Progress& progress) {
  moela_device& device = *model.device;
  const int64_t row_bytes = desc.cols * dtype_bytes(desc.dtype);
  const int64_t tasks_a_part = (desc.rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK;
  // All places are checked before anything is allocated by the sizes they are said to have.
  std::vector<Source> sources;
  for (int32_t p = 0; p < desc.count; p++) {
    sources.push_back(parts[p].file < 0 ? Source{} : source_of(model, desc, parts[p]));
  }
  weight.memory = Block(desc.count * desc.rows * row_bytes, "weights");
  std::lock_guard lock(device.mutex);
  const bool converts = std::any_of(parts, parts + desc.count,
                                    [](const moela_weight_part& part) { return part.file >= 0; });
  if (converts) {
    for (auto& scratch : device.scratch) scratch.get(desc.cols);
  }
  for (int32_t p = 0; p < desc.count; p++) {
    char* out = weight.memory.data() + p * desc.rows * row_bytes;
    weight.view.parts.push_back(out);
    const bool generated = parts[p].file < 0;
    const Source& source = sources[p];
    device.threads->parallel_for(tasks_a_part, [&](int64_t task, int thread) {
      if (progress.cancelled()) return;
      const int64_t begin = task * ROWS_PER_TASK;
      const int64_t end = std::min(begin + ROWS_PER_TASK, desc.rows);
      if (generated) {
        generate(desc.seed, parts[p].offset, begin * desc.cols, (end - begin) * desc.cols,
                 desc.mean, desc.deviation, desc.dtype, out + begin * row_bytes);
        return;
      }
      float* row = device.scratch[thread].get(desc.cols);
      for (int64_t r = begin; r < end; r++) {
        decode_row(desc, source, r, row, *device.kernels);
        device.kernels->store(desc.dtype, desc.cols, row, out + r * row_bytes);
      }
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
    const uint64_t bytes = static_cast<uint64_t>(desc->count) * desc->rows * desc->cols *
                           dtype_bytes(desc->dtype);
    if (in_place) {
      for (int32_t i = 0; i < desc->count; i++) {
        weight.view.parts.push_back(source_of(*model, *desc, parts[i]).data);
      }
      weight.mapped_bytes = bytes;
    } else {
      fill(*model, *desc, parts, weight, Progress{control});
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
    require(view.dtype == MOELA_F32 || view.dtype == MOELA_BF16, "the weight is not f32 or bf16");
    require(out_bytes == static_cast<uint64_t>(view.rows * view.cols * 4), "size of the output");
    model->device->kernels->load(view.dtype, view.rows * view.cols, view.parts[part], out);
  });
}
