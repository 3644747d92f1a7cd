// A GPU as a device.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "cuda/runtime_memory.h"
#include "runtime/device.h"

namespace moela::cuda {

class CudaDevice : public moela_device {
 public:
  explicit CudaDevice(const moela_device_options& options);

  void query(moela_device_info& info) override;
  double bandwidth(uint64_t bytes, int32_t repeats) override;
  std::unique_ptr<DeviceMemory> allocate(uint64_t bytes, const char* name, bool reserve) override;
  void copy_in(void* to, const void* from, uint64_t bytes) override;
  void copy_out(void* to, const void* from, uint64_t bytes) override;
  void copy_within(void* to, const void* from, uint64_t bytes) override;
  std::unique_ptr<Backend> make_backend(moela_model& model) override;

  // Makes it the thread's current one: at the start of whatever comes from outside.
  void select() const;

  int index = 0;
  int sms = 0;
  bool hopper = false;       // sm_90a kernels may be used
  bool persistent = false;   // and one launch for the layers of a row: see persistent.cu
  bool insists = false;      // on that: a step that cannot run so is an error
  bool can_overlap = false;  // programmatic dependent launch

 private:
  int major_ = 0;
  std::string name_;
};

// Reads `words` 16-byte words once; `sink` is written never, which the compiler cannot know.
void read_all(const void* data, int64_t words, int32_t sms, int* sink, cudaStream_t stream);

}  // namespace moela::cuda
