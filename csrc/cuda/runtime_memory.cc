#include "cuda/runtime_memory.h"

#include <cuda.h>

#include <algorithm>
#include <mutex>

#include "cuda/launch.h"
#include "runtime/error.h"

namespace moela::cuda {
namespace {

// The driver's functions for virtual memory, found at run time: the library needs no libcuda to
// load.
struct Driver {
  decltype(&cuMemGetAllocationGranularity) granularity;
  decltype(&cuMemAddressReserve) reserve;
  decltype(&cuMemAddressFree) free;
  decltype(&cuMemCreate) create;
  decltype(&cuMemRelease) release;
  decltype(&cuMemMap) map;
  decltype(&cuMemUnmap) unmap;
  decltype(&cuMemSetAccess) set_access;
};

template <class Function>
void find(Function& function, const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  check(cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result),
        "looking for the driver's functions");
  if (!found || result != cudaDriverEntryPointSuccess) {
    throw Error(MOELA_ERR_DEVICE, format("the GPU's driver has no %s: it is too old", name));
  }
  function = reinterpret_cast<Function>(found);
}

const Driver& driver() {
  static const Driver found = [] {
    Driver driver;
    find(driver.granularity, "cuMemGetAllocationGranularity");
    find(driver.reserve, "cuMemAddressReserve");
    find(driver.free, "cuMemAddressFree");
    find(driver.create, "cuMemCreate");
    find(driver.release, "cuMemRelease");
    find(driver.map, "cuMemMap");
    find(driver.unmap, "cuMemUnmap");
    find(driver.set_access, "cuMemSetAccess");
    return driver;
  }();
  return found;
}

CUmemAllocationProp properties(int device) {
  CUmemAllocationProp prop{};
  prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  prop.location.id = device;
  return prop;
}

[[noreturn]] void out_of_memory(uint64_t bytes, const char* name) {
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  throw Error(MOELA_ERR_MEMORY, format("%llu %llu %s", static_cast<unsigned long long>(bytes),
                                       static_cast<unsigned long long>(free), name));
}

void check_driver(CUresult result, uint64_t bytes, const char* name) {
  if (result == CUDA_SUCCESS) return;
  if (result == CUDA_ERROR_OUT_OF_MEMORY) out_of_memory(bytes, name);
  throw Error(MOELA_ERR_DEVICE, format("mapping memory of the GPU for %s: error %d", name, result));
}

// Of a pool a chunk is some pages of a large model; small pools get the least there is.
constexpr uint64_t LARGE_CHUNK = uint64_t{16} << 20;
constexpr uint64_t LARGE_RANGE = uint64_t{1} << 32;  // more than this is large
// What a range may hold without a user: the pages of some thousand tokens.
constexpr uint64_t MOST_IDLE = uint64_t{1} << 28;

// Of all models' ranges: one may have to give memory back for another.
std::recursive_mutex ranges_mutex;
std::vector<CudaRange*> ranges;

}  // namespace

void check_memory(cudaError_t error, uint64_t bytes, const char* name) {
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it is told once, and the next call must not see it
    out_of_memory(bytes, name);
  }
  check(error, name);
}

CudaMemory::CudaMemory(int device, uint64_t bytes, const char* name) : device_(device) {
  if (bytes == 0) return;
  void* data = nullptr;
  cudaError_t error = cudaMalloc(&data, bytes);
  if (error == cudaErrorMemoryAllocation && CudaRange::give_back(device)) {
    cudaGetLastError();
    error = cudaMalloc(&data, bytes);
  }
  check_memory(error, bytes, name);
  data_ = static_cast<char*>(data);
  bytes_ = bytes;
  // Done before anything that any stream does later.
  check(cudaMemset(data, 0, bytes), "clearing memory of the GPU");
  check(cudaStreamSynchronize(nullptr), "clearing memory of the GPU");
}

CudaMemory::~CudaMemory() {
  if (!data_) return;
  cudaSetDevice(device_);
  cudaFree(data_);
  cudaGetLastError();
}

CudaRange::CudaRange(int device, uint64_t bytes, const char* name, bool fine)
    : device_(device), name_(name) {
  const CUmemAllocationProp prop = properties(device);
  size_t granularity = 0;
  check_driver(driver().granularity(&granularity, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM), bytes,
               name);
  chunk_bytes_ = granularity;
  if (!fine && bytes > LARGE_RANGE) chunk_bytes_ = std::max(chunk_bytes_, LARGE_CHUNK);
  const uint64_t chunks = (bytes + chunk_bytes_ - 1) / chunk_bytes_;
  reserved_ = chunks * chunk_bytes_;
  CUdeviceptr address = 0;
  check_driver(driver().reserve(&address, reserved_, 0, 0, 0), bytes, name);
  data_ = reinterpret_cast<char*>(address);
  bytes_ = bytes;
  chunks_.resize(chunks);
  std::lock_guard lock(ranges_mutex);
  ranges.push_back(this);
}

CudaRange::~CudaRange() {
  std::lock_guard lock(ranges_mutex);
  ranges.erase(std::find(ranges.begin(), ranges.end(), this));
  cudaSetDevice(device_);
  for (uint64_t chunk = 0; chunk < chunks_.size(); chunk++) {
    if (chunks_[chunk].handle) unmap(chunk);
  }
  driver().free(reinterpret_cast<CUdeviceptr>(data_), reserved_);
}

bool CudaRange::give_back(int device) {
  std::lock_guard lock(ranges_mutex);
  bool any = false;
  for (CudaRange* range : ranges) {
    if (range->device_ != device) continue;
    for (uint64_t chunk = 0; range->idle_bytes_ > 0; chunk++) {
      if (!range->chunks_[chunk].handle || range->chunks_[chunk].users > 0) continue;
      range->unmap(chunk);
      range->idle_bytes_ -= range->chunk_bytes_;
      any = true;
    }
  }
  return any;
}

void CudaRange::clear(uint64_t chunk) {
  check(cudaMemset(data_ + chunk * chunk_bytes_, 0, chunk_bytes_), "clearing memory of the GPU");
}

void CudaRange::map(uint64_t chunk) {
  const CUmemAllocationProp prop = properties(device_);
  const CUdeviceptr at = reinterpret_cast<CUdeviceptr>(data_) + chunk * chunk_bytes_;
  CUmemGenericAllocationHandle handle;
  CUresult result = driver().create(&handle, chunk_bytes_, &prop, 0);
  if (result == CUDA_ERROR_OUT_OF_MEMORY && give_back(device_)) {
    result = driver().create(&handle, chunk_bytes_, &prop, 0);
  }
  check_driver(result, chunk_bytes_, name_);
  result = driver().map(at, chunk_bytes_, 0, handle, 0);
  if (result == CUDA_SUCCESS) {
    CUmemAccessDesc access{};
    access.location = prop.location;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    result = driver().set_access(at, chunk_bytes_, &access, 1);
    if (result != CUDA_SUCCESS) driver().unmap(at, chunk_bytes_);
  }
  if (result != CUDA_SUCCESS) driver().release(handle);
  check_driver(result, chunk_bytes_, name_);
  chunks_[chunk].handle = handle;
}

void CudaRange::unmap(uint64_t chunk) {
  driver().unmap(reinterpret_cast<CUdeviceptr>(data_) + chunk * chunk_bytes_, chunk_bytes_);
  driver().release(chunks_[chunk].handle);
  chunks_[chunk].handle = 0;
}

void CudaRange::use(uint64_t offset, uint64_t bytes) {
  if (bytes == 0) return;
  const uint64_t first = offset / chunk_bytes_, last = (offset + bytes - 1) / chunk_bytes_;
  std::lock_guard lock(ranges_mutex);
  bool cleared = false;
  for (uint64_t chunk = first; chunk <= last; chunk++) {
    Chunk& mine = chunks_[chunk];
    if (mine.users++ > 0) continue;
    try {
      cudaSetDevice(device_);
      if (mine.handle) {
        idle_bytes_ -= chunk_bytes_;
      } else {
        map(chunk);
      }
      clear(chunk);
      cleared = true;
    } catch (...) {
      // As if it had never been asked for.
      if (!mine.handle) mine.users = 0;
      const uint64_t end = chunk + (mine.handle ? 1 : 0);
      if (end > first) discard(first * chunk_bytes_, (end - first) * chunk_bytes_);
      throw;
    }
  }
  // Done before anything that any stream does later.
  if (cleared) check(cudaStreamSynchronize(nullptr), "clearing memory of the GPU");
}

void CudaRange::discard(uint64_t offset, uint64_t bytes) {
  if (bytes == 0) return;
  std::lock_guard lock(ranges_mutex);
  cudaSetDevice(device_);
  for (uint64_t chunk = offset / chunk_bytes_; chunk <= (offset + bytes - 1) / chunk_bytes_;
       chunk++) {
    if (--chunks_[chunk].users > 0) continue;
    if (idle_bytes_ + chunk_bytes_ <= MOST_IDLE) {
      idle_bytes_ += chunk_bytes_;
    } else {
      unmap(chunk);
    }
  }
}

void CudaRange::grow(uint64_t bytes) {
  if (bytes <= grown_) return;
  const uint64_t end = (bytes + chunk_bytes_ - 1) / chunk_bytes_ * chunk_bytes_;
  use(grown_, end - grown_);
  grown_ = end;
}

CudaPlace::CudaPlace(std::shared_ptr<CudaRange> range, uint64_t offset, uint64_t bytes,
                     const char* name)
    : range_(std::move(range)), offset_(offset) {
  if (offset + bytes > range_->bytes()) out_of_memory(bytes, name);
  try {
    range_->use(offset, bytes);
  } catch (const Error& error) {
    // Not the chunk that was one too many, but all of it.
    if (error.status == MOELA_ERR_MEMORY) out_of_memory(bytes, name);
    throw;
  }
  data_ = range_->data() + offset;
  bytes_ = bytes;
}

CudaPlace::~CudaPlace() { range_->discard(offset_, bytes_); }

Pinned::~Pinned() {
  if (data_) cudaFreeHost(data_);
  cudaGetLastError();
}

void Pinned::need(uint64_t bytes) {
  if (bytes <= bytes_) return;
  if (data_) cudaFreeHost(data_);
  data_ = nullptr;
  bytes_ = 0;
  void* data = nullptr;
  const uint64_t more = std::max<uint64_t>(4096, bytes + bytes / 4);
  check_memory(cudaHostAlloc(&data, more, cudaHostAllocMapped | cudaHostAllocPortable), more,
               "pinned memory of the host");
  data_ = static_cast<char*>(data);
  bytes_ = more;
}

}  // namespace moela::cuda
