// The GPU's memory: blocks, ranges of addresses whose memory comes with use, and pinned memory of
// the host. The GPU must be the thread's current one.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <vector>

#include "runtime/device.h"

namespace moela::cuda {

// Throws MEMORY for an allocation that failed, and DEVICE for everything else.
void check_memory(cudaError_t error, uint64_t bytes, const char* name);

// Zeroed memory, freed with the object.
class CudaMemory : public DeviceMemory {
 public:
  CudaMemory(int device, uint64_t bytes, const char* name);
  ~CudaMemory() override;

 private:
  int device_;
};

// A reserved range. Chunks get zeroed memory with the first use() that touches them, and lose it
// with the last discard(); but some stay for the next use(), since mapping takes longer than
// clearing, until an allocation fails.
class CudaRange : public DeviceMemory {
 public:
  // `fine`: in the smallest chunks there are, however large the range.
  CudaRange(int device, uint64_t bytes, const char* name, bool fine = false);
  ~CudaRange() override;
  CudaRange(const CudaRange&) = delete;
  void use(uint64_t offset, uint64_t bytes) override;
  void discard(uint64_t offset, uint64_t bytes) override;
  // use() of what lies in [0, bytes) and had none yet.
  void grow(uint64_t bytes);
  uint64_t grown() const { return grown_; }

 private:
  // Unmaps what ranges on a GPU hold without a user; says whether there was any.
  static bool give_back(int device);

  void map(uint64_t chunk);
  void unmap(uint64_t chunk);
  void clear(uint64_t chunk);

  struct Chunk {
    uint64_t handle = 0;  // CUmemGenericAllocationHandle
    int32_t users = 0;
  };
  friend class CudaMemory;
  int device_;
  const char* name_;
  uint64_t chunk_bytes_;
  uint64_t reserved_;
  uint64_t grown_ = 0;
  uint64_t idle_bytes_ = 0;  // of chunks with memory and without a user
  std::vector<Chunk> chunks_;
};

// Some of a range, which it keeps.
class CudaPlace : public DeviceMemory {
 public:
  CudaPlace(std::shared_ptr<CudaRange> range, uint64_t offset, uint64_t bytes, const char* name);
  ~CudaPlace() override;

 private:
  std::shared_ptr<CudaRange> range_;
  uint64_t offset_;
};

// Pinned memory of the host that the GPU sees at the same address; grows, losing its content.
class Pinned {
 public:
  Pinned() = default;
  ~Pinned();
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  void need(uint64_t bytes);
  char* data() const { return data_; }
  template <class T>
  T* as(uint64_t offset = 0) const {
    return reinterpret_cast<T*>(data_ + offset);
  }

 private:
  char* data_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace moela::cuda
