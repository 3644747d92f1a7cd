// Memory of the emulated GPU: fresh memory is poisoned, each allocation ends at a page that may not
// be touched, and what is free may not be touched either. Some allocations lie far apart.
#include "memory.h"

#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "cuda.h"
#include "cuda_runtime.h"
#include "device.h"

namespace {

constexpr size_t ALIGNMENT = 256;
const size_t PAGE = sysconf(_SC_PAGESIZE);

struct Allocation {
  char* pages;
  size_t mapped;
  size_t bytes;
};
std::map<void*, Allocation>& allocations() {
  static std::map<void*, Allocation> all;
  return all;
}
std::map<CUmemGenericAllocationHandle, size_t>& chunks() {
  static std::map<CUmemGenericAllocationHandle, size_t> all;
  return all;
}
size_t used = 0;

// One beside the others, or somewhere among all addresses: allocations of a process with many
// models lie in any order, and some of them far apart.
void* anywhere() {
  static uint64_t state = 1;
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  if (state >> 63) return nullptr;
  return reinterpret_cast<void*>((state >> 20) % (uint64_t{1} << 46) / PAGE * PAGE);
}

size_t whole_pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

void* allocate(size_t bytes) {
  const size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  const size_t mapped = whole_pages(rounded) + PAGE;
  void* pages =
      mmap(anywhere(), mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) return nullptr;
  char* end = static_cast<char*>(pages) + mapped - PAGE;
  mprotect(end, PAGE, PROT_NONE);
  memset(pages, emulated::POISON, mapped - PAGE);
  allocations()[end - rounded] = {static_cast<char*>(pages), mapped, bytes};
  return end - rounded;
}
// Bytes beside the allocation must be as they were.
bool release(void* data) {
  const auto found = allocations().find(data);
  if (found == allocations().end()) return false;
  const auto [pages, mapped, bytes] = found->second;
  bool kept = true;
  for (char* at = pages; at < data; at++) kept &= *at == static_cast<char>(emulated::POISON);
  for (char* at = static_cast<char*>(data) + bytes; at < pages + mapped - PAGE; at++) {
    kept &= *at == static_cast<char>(emulated::POISON);
  }
  if (!kept) emulated::report("memory beside an allocation was written");
  munmap(pages, mapped);
  allocations().erase(found);
  return true;
}

}  // namespace

namespace emulated {

void poison_static_shared() {
  // What this library has of a thread's memory is nothing but what kernels declare, and this.
  static thread_local char any;
  struct Place {
    char* data;
    size_t bytes;
  };
  const auto find = [](dl_phdr_info* info, size_t, void* out) {
    bool ours = false;
    size_t bytes = 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
      const auto& header = info->dlpi_phdr[i];
      const auto begin = info->dlpi_addr + header.p_vaddr;
      const auto self = reinterpret_cast<uintptr_t>(&poison_static_shared);
      ours |= header.p_type == PT_LOAD && self >= begin && self < begin + header.p_memsz;
      if (header.p_type == PT_TLS) bytes = header.p_memsz;
    }
    if (ours) *static_cast<Place*>(out) = {static_cast<char*>(info->dlpi_tls_data), bytes};
    return ours ? 1 : 0;
  };
  static size_t bytes = 0, offset = 0;  // of the memory, and of `any` in it: alike in all threads
  char* own = &any;
  if (bytes == 0) {
    *own = 0;
    Place place{nullptr, 0};
    dl_iterate_phdr(find, &place);
    if (!place.data) return;
    bytes = place.bytes;
    offset = own - place.data;
  }
  memset(own - offset, POISON, bytes);
}

}  // namespace emulated

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  emulated::Lock lock;
  *total = emulated::MEMORY;
  *free = emulated::MEMORY - used;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** data, size_t bytes) {
  emulated::Lock lock;
  *data = nullptr;
  if (bytes > emulated::MEMORY - used) return cudaErrorMemoryAllocation;
  *data = allocate(bytes);
  if (!*data) return cudaErrorMemoryAllocation;
  used += bytes;
  return cudaSuccess;
}

cudaError_t cudaFree(void* data) {
  emulated::Lock lock;
  if (!data) return cudaSuccess;
  emulated::finish_all();
  const auto found = allocations().find(data);
  if (found != allocations().end()) used -= found->second.bytes;
  return release(data) ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned) {
  emulated::Lock lock;
  *data = allocate(bytes);
  return *data ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFreeHost(void* data) {
  emulated::Lock lock;
  emulated::finish_all();
  return release(data) ? cudaSuccess : cudaErrorInvalidValue;
}

CUresult cuMemGetAllocationGranularity(size_t* granularity, const CUmemAllocationProp*,
                                       CUmemAllocationGranularity_flags) {
  *granularity = PAGE;
  return CUDA_SUCCESS;
}
CUresult cuMemAddressReserve(CUdeviceptr* address, size_t bytes, size_t, CUdeviceptr,
                             unsigned long long) {
  emulated::Lock lock;
  void* at = mmap(anywhere(), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  *address = reinterpret_cast<CUdeviceptr>(at);
  return CUDA_SUCCESS;
}
CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes) {
  return munmap(reinterpret_cast<void*>(address), bytes) ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp*,
                     unsigned long long) {
  emulated::Lock lock;
  if (bytes > emulated::MEMORY - used) return CUDA_ERROR_OUT_OF_MEMORY;
  used += bytes;
  static CUmemGenericAllocationHandle next = 0;
  *handle = ++next;
  chunks()[*handle] = bytes;
  return CUDA_SUCCESS;
}
CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  emulated::Lock lock;
  const auto found = chunks().find(handle);
  if (found == chunks().end()) return CUDA_ERROR_INVALID_VALUE;
  used -= found->second;
  chunks().erase(found);
  return CUDA_SUCCESS;
}
CUresult cuMemMap(CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long) {
  return CUDA_SUCCESS;
}
CUresult cuMemUnmap(CUdeviceptr address, size_t bytes) {
  emulated::Lock lock;
  emulated::finish_all();
  void* at = reinterpret_cast<void*>(address);
  madvise(at, bytes, MADV_DONTNEED);
  return mprotect(at, bytes, PROT_NONE) ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
CUresult cuMemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc*, size_t) {
  void* at = reinterpret_cast<void*>(address);
  if (mprotect(at, bytes, PROT_READ | PROT_WRITE)) return CUDA_ERROR_INVALID_VALUE;
  memset(at, emulated::POISON, bytes);
  return CUDA_SUCCESS;
}
