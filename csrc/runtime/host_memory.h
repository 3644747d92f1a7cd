// The process's memory: mapped files, large blocks, and how much there is.
#pragma once

#include <cstdint>
#include <string>

namespace moela {

// A file mapped for reading.
class MappedFile {
 public:
  explicit MappedFile(const char* path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  // The bytes [offset, offset + bytes); throws IO when the file ends before.
  const char* range(uint64_t offset, uint64_t bytes) const;

 private:
  std::string path_;
  char* data_ = nullptr;
  uint64_t bytes_ = 0;
};

// Zeroed address space; memory comes when it is first touched. `reserve` checks nothing, otherwise
// the bytes must be free now (throws MEMORY with the name).
class Block {
 public:
  Block() = default;
  Block(uint64_t bytes, const char* name, bool reserve = false);
  ~Block();
  Block(Block&& other) noexcept;
  Block& operator=(Block&& other) noexcept;

  char* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  // Gives the memory under whole system pages of [offset, offset + bytes) back; they read as zero.
  void discard(uint64_t offset, uint64_t bytes);

 private:
  char* data_ = nullptr;
  uint64_t bytes_ = 0;
};

struct MemoryState {
  uint64_t total;
  uint64_t free;  // the smaller of what is available and the cgroup's limit less its use
};
MemoryState memory_state();

// Processors that this process may use: affinity and the cgroup's quota.
int usable_processors();

}  // namespace moela
