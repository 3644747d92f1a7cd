#include "runtime/host_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

#include "runtime/error.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace moela {
namespace {

// The sanitizer does not know where the memory of mmap() ends: in its build the bytes from the end
// of what was asked for to the end of the mapping are made out of bounds, and a block has a page
// more for that.
#if defined(__SANITIZE_ADDRESS__)
constexpr uint64_t FENCE = 4096;
void fence(char* data, uint64_t bytes, uint64_t mapped) {
  __asan_poison_memory_region(data + bytes, mapped - bytes);
}
void unfence(char* data, uint64_t bytes, uint64_t mapped) {
  __asan_unpoison_memory_region(data + bytes, mapped - bytes);
}
#else
constexpr uint64_t FENCE = 0;
void fence(char*, uint64_t, uint64_t) {}
void unfence(char*, uint64_t, uint64_t) {}
#endif

uint64_t whole_pages(uint64_t bytes) {
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

}  // namespace

MappedFile::MappedFile(const char* path) : path_(path) {
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) throw Error(MOELA_ERR_IO, format("Cannot open %s: %s", path, strerror(errno)));
  struct stat status;
  if (fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
    close(file);
    throw Error(MOELA_ERR_IO, format("Cannot map %s: it is not a regular file", path));
  }
  bytes_ = static_cast<uint64_t>(status.st_size);
  if (bytes_ > 0) {
    void* data = mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, file, 0);
    const int error = errno;
    if (data == MAP_FAILED) {
      close(file);
      throw Error(MOELA_ERR_IO, format("Cannot map %s: %s", path, strerror(error)));
    }
    data_ = static_cast<char*>(data);
    fence(data_, bytes_, whole_pages(bytes_));
  }
  close(file);
}

MappedFile::~MappedFile() {
  if (!data_) return;
  unfence(data_, bytes_, whole_pages(bytes_));
  munmap(data_, bytes_);
}

const char* MappedFile::range(uint64_t offset, uint64_t bytes) const {
  if (offset > bytes_ || bytes > bytes_ - offset) {
    throw Error(MOELA_ERR_IO, format("%s ends at byte %llu, and a tensor needs bytes up to %llu",
                                     path_.c_str(), static_cast<unsigned long long>(bytes_),
                                     static_cast<unsigned long long>(offset + bytes)));
  }
  return data_ + offset;
}

Block::Block(uint64_t bytes, const char* name, bool reserve) {
  if (bytes == 0) return;
  const uint64_t free = reserve ? UINT64_MAX : memory_state().free;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#if defined(MAP_NORESERVE)
  flags |= MAP_NORESERVE;
#endif
  const uint64_t mapped = whole_pages(bytes) + FENCE;
  void* data = MAP_FAILED;
  if (bytes <= free) data = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (data == MAP_FAILED) {
    throw Error(MOELA_ERR_MEMORY,
                format("%llu %llu %s", static_cast<unsigned long long>(bytes),
                       static_cast<unsigned long long>(memory_state().free), name));
  }
#if defined(MADV_HUGEPAGE)
  // Large pages make streaming through weights cheaper. A reservation stays at small ones, so that
  // a cache of few tokens does not take 2 MB at a time.
  if (!reserve && bytes >= (uint64_t{4} << 20)) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  data_ = static_cast<char*>(data);
  bytes_ = bytes;
  fence(data_, bytes, mapped);
}

Block::~Block() {
  if (!data_) return;
  const uint64_t mapped = whole_pages(bytes_) + FENCE;
  unfence(data_, bytes_, mapped);
  munmap(data_, mapped);
}

Block::Block(Block&& other) noexcept : data_(other.data_), bytes_(other.bytes_) {
  other.data_ = nullptr;
  other.bytes_ = 0;
}

Block& Block::operator=(Block&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void Block::discard(uint64_t offset, uint64_t bytes) {
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t begin = (offset + page - 1) / page * page;
  const uint64_t end = (offset + bytes) / page * page;
  if (end > begin) madvise(data_ + begin, end - begin, MADV_DONTNEED);
}

namespace {

// The number after `key` in a text file; -1 when the file or the key is absent.
int64_t read_number(const char* path, const char* key) {
  FILE* file = fopen(path, "re");
  if (!file) return -1;
  char line[256];
  int64_t found = -1;
  const size_t length = strlen(key);
  while (found < 0 && fgets(line, sizeof line, file)) {
    long long number;
    if (strncmp(line, key, length) == 0 && sscanf(line + length, "%lld", &number) == 1) {
      found = number;
    }
  }
  fclose(file);
  return found;
}

}  // namespace

MemoryState memory_state() {
  const int64_t total = read_number("/proc/meminfo", "MemTotal:");
  const int64_t available = read_number("/proc/meminfo", "MemAvailable:");
  MemoryState state;
  if (total > 0 && available >= 0) {
    state.total = static_cast<uint64_t>(total) * 1024;
    state.free = static_cast<uint64_t>(available) * 1024;
  } else {
    const int64_t pages = sysconf(_SC_PHYS_PAGES);
    state.total = static_cast<uint64_t>(std::max<int64_t>(pages, 0)) *
                  static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    state.free = state.total / 2;
  }
  const int64_t limit = read_number("/sys/fs/cgroup/memory.max", "");
  const int64_t used = read_number("/sys/fs/cgroup/memory.current", "");
  if (limit > 0 && used >= 0) {
    // Pages of files are given up under pressure, so they count as free.
    const int64_t files = std::max<int64_t>(read_number("/sys/fs/cgroup/memory.stat", "file "), 0);
    const int64_t free = limit - std::max<int64_t>(used - files, 0);
    state.total = std::min(state.total, static_cast<uint64_t>(limit));
    state.free = std::min(state.free, static_cast<uint64_t>(std::max<int64_t>(free, 0)));
  }
  return state;
}

int usable_processors() {
  int count = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) count = CPU_COUNT(&set);
  if (FILE* file = fopen("/sys/fs/cgroup/cpu.max", "re")) {
    long long quota, period;
    if (fscanf(file, "%lld %lld", &quota, &period) == 2 && quota > 0 && period > 0) {
      count = std::min(count, static_cast<int>((quota + period - 1) / period));
    }
    fclose(file);
  }
#endif
  return std::max(count, 1);
}

}  // namespace moela
