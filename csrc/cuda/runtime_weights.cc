// Weights in the GPU's memory: straight from mapped files through two pinned buffers, so that one
// fills while the other is under way; from the host after a conversion; or generated in place.
#include <algorithm>
#include <cstring>

#include "cuda/launch.h"
#include "cuda/runtime_model.h"
#include "runtime/error.h"

namespace moela::cuda {
namespace {

constexpr int64_t ALIGNMENT = 256;  // of parts; and so many bytes may be read beyond the last
constexpr uint64_t GUARD = 4096;    // bytes without use between weights
constexpr int64_t BUFFER = int64_t{16} << 20;
constexpr int64_t PIECE = int64_t{1} << 20;  // that a thread copies

int64_t aligned(int64_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

bool cancelled(const int32_t* control) {
  return control && __atomic_load_n(control, __ATOMIC_RELAXED) != 0;
}

}  // namespace

int64_t weight_bytes(int32_t dtype, int64_t rows, int64_t cols) {
  switch (dtype) {
    case MOELA_FP8:
    case MOELA_INT8:
      return rows * cols;
    case MOELA_INT4:
      return rows * ((cols + 63) / 64 * 32);
    case MOELA_BF16:
      return rows * cols * 2;
    case MOELA_F64:
      return rows * cols * 8;
    default:
      return rows * cols * 4;
  }
}

int64_t weight_scale_bytes(int32_t dtype, int64_t rows, int64_t cols) {
  const int64_t groups = (cols + 127) / 128;
  switch (dtype) {
    case MOELA_FP8:
      return (rows + 127) / 128 * groups * 4;
    case MOELA_INT8:
      return rows * groups * 2;
    case MOELA_INT4:
      return rows * groups * 4;
    default:
      return 0;
  }
}

std::unique_ptr<DeviceMemory> CudaBackend::weight_memory(uint64_t bytes) {
  if (!weight_range_) {
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "asking the GPU for its memory");
    weight_range_ = std::make_shared<CudaRange>(device.index, total, "weights");
  }
  // Addresses without memory follow where the range has chunks so small, as on an emulated GPU: a
  // read past the end is noticed there.
  const uint64_t end = (weights_end_ + GUARD + bytes + GUARD - 1) / GUARD * GUARD;
  auto memory = std::make_unique<CudaPlace>(weight_range_, end - bytes, bytes, "weights");
  weights_end_ = end;
  return memory;
}

// Sets what the weight's view points to; the bytes come after.
void CudaBackend::allocate_weight(StoredWeight& weight, int64_t count) {
  moela::Weight& view = weight.view;
  weight.part_bytes = aligned(weight_bytes(view.dtype, view.rows, view.cols));
  weight.scale_part_bytes = aligned(weight_scale_bytes(view.dtype, view.rows, view.cols));
  const uint64_t bytes = count * (weight.part_bytes + weight.scale_part_bytes) + ALIGNMENT;
  weight.device = weight_memory(bytes);
  view.parts.clear();
  view.scales.clear();
  for (int64_t p = 0; p < count; p++) {
    view.parts.push_back(weight.device->data() + p * weight.part_bytes);
    if (weight.scale_part_bytes) {
      view.scales.push_back(weight.device->data() + count * weight.part_bytes +
                            p * weight.scale_part_bytes);
    }
  }
}

void CudaBackend::hold_weight(StoredWeight& weight, int32_t* control) {
  check_alive();
  const std::vector<const void*> parts = weight.view.parts, scales = weight.view.scales;
  allocate_weight(weight, static_cast<int64_t>(parts.size()));
  std::lock_guard lock(device.mutex);
  int buffer = 0;
  const auto send = [&](const void* to, const void* from, int64_t bytes) {
    for (int64_t begin = 0; begin < bytes; begin += BUFFER) {
      if (cancelled(control)) {
        cudaStreamSynchronize(stream);
        throw Error(MOELA_ERR_CANCELLED, "loading was cancelled");
      }
      const int64_t size = std::min(BUFFER, bytes - begin);
      upload_[buffer].need(std::min<int64_t>(BUFFER, aligned(size)));
      check(cudaEventSynchronize(uploaded_[buffer]), "uploading a weight");
      char* pinned = upload_[buffer].data();
      const char* source = static_cast<const char*>(from) + begin;
      const auto copy = [&](int64_t piece, int) {
        const int64_t at = piece * PIECE;
        memcpy(pinned + at, source + at, std::min(PIECE, size - at));
      };
      if (size <= PIECE) {
        copy(0, 0);
      } else {
        device.threads->parallel_for((size + PIECE - 1) / PIECE, copy);
      }
      char* target = static_cast<char*>(const_cast<void*>(to)) + begin;
      check(cudaMemcpyAsync(target, pinned, size, cudaMemcpyHostToDevice, stream),
            "uploading a weight");
      check(cudaEventRecord(uploaded_[buffer], stream), "uploading a weight");
      buffer ^= 1;
    }
  };
  const moela::Weight& view = weight.view;
  for (size_t p = 0; p < parts.size(); p++) {
    send(view.parts[p], parts[p], weight_bytes(view.dtype, view.rows, view.cols));
    if (p < scales.size()) {
      send(view.scales[p], scales[p], weight_scale_bytes(view.dtype, view.rows, view.cols));
    }
  }
  check(cudaStreamSynchronize(stream), "uploading a weight");
  weight.memory = Block();
  weight.constant = std::vector<char>();
  weight.mapped_bytes = 0;
}

bool CudaBackend::make_weight(const moela_weight_desc& desc, const moela_weight_part* parts,
                              StoredWeight& weight, int32_t* control) {
  const auto plain = [](int32_t dtype) { return dtype == MOELA_F32 || dtype == MOELA_BF16; };
  const bool scaled = weight_scale_bytes(desc.dtype, desc.rows, desc.cols) > 0;
  if (!plain(desc.stored) || !(scaled || desc.stored == desc.dtype)) return false;
  for (int32_t p = 0; p < desc.count; p++) {
    if (parts[p].file >= 0) return false;
  }
  check_alive();
  weight.view.parts.clear();
  allocate_weight(weight, desc.count);
  // What is quantized is made in memory of its own first.
  const uint64_t room = scaled ? weight_bytes(desc.stored, desc.rows, desc.cols) : 0;
  const CudaMemory temporary(device.index, room, "generated weights");
  for (int32_t p = 0; p < desc.count; p++) {
    if (cancelled(control)) {
      cudaStreamSynchronize(stream);
      throw Error(MOELA_ERR_CANCELLED, "loading was cancelled");
    }
    void* out = const_cast<void*>(weight.view.parts[p]);
    generate_weight(desc.seed, parts[p].offset, desc.rows * desc.cols, desc.mean, desc.deviation,
                    desc.stored, scaled ? temporary.data() : out, stream);
    if (scaled) {
      quantize_weight(desc.stored, temporary.data(), desc.rows, desc.cols, desc.dtype, out,
                      const_cast<void*>(weight.view.scales[p]), stream);
    }
  }
  check(cudaStreamSynchronize(stream), "generating a weight");
  return true;
}

}  // namespace moela::cuda
