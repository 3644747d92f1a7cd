// A device: threads and kernels of the host, and what a GPU does its own way.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/ops.h"
#include "moela.h"
#include "runtime/threads.h"

namespace moela {

// Memory of a device, or a range of its addresses whose memory comes with use.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  DeviceMemory() = default;
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  char* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  // Of a range: [offset, offset + bytes) is about to be used (throws MEMORY), or holds nothing any
  // more, so that its memory may go back. Each use() has one discard() of the same bytes.
  virtual void use(uint64_t /*offset*/, uint64_t /*bytes*/) {}
  virtual void discard(uint64_t /*offset*/, uint64_t /*bytes*/) {}

 protected:
  char* data_ = nullptr;
  uint64_t bytes_ = 0;
};

struct Backend;

}  // namespace moela

struct moela_device {
  moela_device(const moela::Kernels* kernels, int threads);
  virtual ~moela_device() = default;

  virtual void query(moela_device_info& info) = 0;
  // The best rate of reading `bytes` once, in bytes a second.
  virtual double bandwidth(uint64_t bytes, int32_t repeats) = 0;
  // Zeroed memory, free now (throws MEMORY with the name), or a reserved range of addresses.
  virtual std::unique_ptr<moela::DeviceMemory> allocate(uint64_t bytes, const char* name,
                                                        bool reserve) = 0;
  // Between the caller's memory and the device's; all have ended when they return.
  virtual void copy_in(void* to, const void* from, uint64_t bytes) = 0;
  virtual void copy_out(void* to, const void* from, uint64_t bytes) = 0;
  virtual void copy_within(void* to, const void* from, uint64_t bytes) = 0;
  virtual std::unique_ptr<moela::Backend> make_backend(moela_model& model) = 0;

  const moela::Kernels* kernels;  // the host's
  std::unique_ptr<moela::Threads> threads;
  std::vector<moela::Scratch> scratch;  // one a thread
  std::mutex mutex;                     // held by whoever uses threads and scratch
};

namespace moela {

// The library's kind of device.
moela_device* open_device(const moela_device_options& options);

// Sets of kernels of the host, the best first, and the one asked for by a moela_kernels.
std::vector<const Kernels*> host_kernels();
const char* kernels_name(int32_t id);

}  // namespace moela
