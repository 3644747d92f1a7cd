#include "cuda/runtime_device.h"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/runtime_model.h"
#include "runtime/error.h"

namespace moela::cuda {
namespace {

int device_count() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return count;
  cudaGetLastError();
  throw Error(MOELA_ERR_DEVICE,
              error == cudaSuccess || error == cudaErrorNoDevice
                  ? "there is no CUDA GPU here"
                  : format("CUDA does not work here: %s", cudaGetErrorString(error)));
}

}  // namespace

CudaDevice::CudaDevice(const moela_device_options& options)
    : moela_device(host_kernels().front(), options.threads), index(options.index) {
  const int count = device_count();
  if (index < 0 || index >= count) {
    throw Error(MOELA_ERR_DEVICE, format("there is no GPU %d: %d here, from 0", index, count));
  }
  select();
  cudaDeviceProp prop;
  check(cudaGetDeviceProperties(&prop, index), "asking the GPU for its properties");
  name_ = prop.name;
  major_ = prop.major;
  sms = prop.multiProcessorCount;
  if (major_ < 8) {
    throw Error(MOELA_ERR_DEVICE,
                format("GPU %d, %s, has compute capability %d.%d, and 8.0 is needed", index,
                       prop.name, prop.major, prop.minor));
  }
  const int32_t wanted = options.kernels;
  if (wanted != MOELA_KERNELS_AUTO && wanted != MOELA_KERNELS_GENERIC &&
      ((wanted != MOELA_KERNELS_SM90 && wanted != MOELA_KERNELS_SM90_PERSISTENT) || major_ != 9)) {
    throw Error(MOELA_ERR_DEVICE,
                format("kernels '%s' are not available on %s; these are: %s", kernels_name(wanted),
                       prop.name, major_ == 9 ? "sm90, sm90-persistent, generic" : "generic"));
  }
  hopper = major_ == 9 && wanted != MOELA_KERNELS_GENERIC;
  insists = wanted == MOELA_KERNELS_SM90_PERSISTENT;
  persistent = insists || (hopper && wanted == MOELA_KERNELS_AUTO);
  can_overlap = major_ >= 9;
}

void CudaDevice::select() const { check(cudaSetDevice(index), "selecting the GPU"); }

void CudaDevice::query(moela_device_info& info) {
  select();
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "asking the GPU for its memory");
  info.kernels = persistent ? MOELA_KERNELS_SM90_PERSISTENT
                 : hopper   ? MOELA_KERNELS_SM90
                            : MOELA_KERNELS_GENERIC;
  info.available = 1 << MOELA_KERNELS_GENERIC | (major_ == 9 ? 1 << MOELA_KERNELS_SM90 : 0);
  info.memory_total = total;
  info.memory_free = free;
  snprintf(info.name, sizeof info.name, "%s", name_.c_str());
}

double CudaDevice::bandwidth(uint64_t bytes, int32_t repeats) {
  select();
  bytes = bytes / 16 * 16;
  CudaMemory memory(index, bytes, "bandwidth measurement");
  CudaMemory sink(index, 4, "bandwidth measurement");
  cudaStream_t stream;
  cudaEvent_t begin, end;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  check(cudaEventCreate(&begin), "making an event");
  check(cudaEventCreate(&end), "making an event");
  float best = 0;
  for (int32_t i = 0; i <= repeats; i++) {  // the first one warms up
    cudaEventRecord(begin, stream);
    read_all(memory.data(), static_cast<int64_t>(bytes / 16), sms,
             reinterpret_cast<int*>(sink.data()), stream);
    cudaEventRecord(end, stream);
    check(cudaStreamSynchronize(stream), "reading memory of the GPU");
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    if (i > 0) best = best == 0 ? ms : std::min(best, ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaStreamDestroy(stream);
  return static_cast<double>(bytes) / (best * 1e-3);
}

std::unique_ptr<DeviceMemory> CudaDevice::allocate(uint64_t bytes, const char* name, bool reserve) {
  select();
  if (reserve) return std::make_unique<CudaRange>(index, bytes, name);
  return std::make_unique<CudaMemory>(index, bytes, name);
}

void CudaDevice::copy_in(void* to, const void* from, uint64_t bytes) {
  select();
  check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "copying to the GPU");
  check(cudaStreamSynchronize(nullptr), "copying to the GPU");
}
void CudaDevice::copy_out(void* to, const void* from, uint64_t bytes) {
  select();
  check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "copying from the GPU");
}
void CudaDevice::copy_within(void* to, const void* from, uint64_t bytes) {
  select();
  if (to == from) return;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, nullptr), "copying on the GPU");
  check(cudaStreamSynchronize(nullptr), "copying on the GPU");
}

std::unique_ptr<Backend> CudaDevice::make_backend(moela_model& model) {
  return std::make_unique<CudaBackend>(model, *this);
}

}  // namespace moela::cuda

namespace moela {
moela_device* open_device(const moela_device_options& options) {
  return new cuda::CudaDevice(options);
}
}  // namespace moela
