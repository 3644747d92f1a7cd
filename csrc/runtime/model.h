// What a model owns: files, weights, pools, programs and their common workspace.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "cpu/ops.h"
#include "moela.h"
#include "runtime/device.h"
#include "runtime/host_memory.h"
#include "runtime/program.h"

namespace moela {

struct StoredWeight {
  Weight view;
  Block memory;                   // where a converted or generated weight lives
  std::vector<char> constant;     // where a constant lives
  uint64_t mapped_bytes = 0;
};

struct Pool {
  PagePool view;
  Block memory;
  Block used;                     // uint8 [max_pages]: written since it was released
  int64_t n_used = 0;

  void mark(int32_t page) { set(page, 1); }
  void unmark(int32_t page) { set(page, 0); }

 private:
  void set(int32_t page, char to) {
    n_used += to - used.data()[page];
    used.data()[page] = to;
  }
};

}  // namespace moela

struct moela_model {
  explicit moela_model(moela_device* device) : device(device) {}

  moela_device* device;
  std::mutex mutex;  // serialises the calls
  std::vector<std::unique_ptr<moela::MappedFile>> files;
  std::vector<moela::StoredWeight> weights;
  std::vector<moela::Pool> pools;
  std::vector<moela::PagePool> pool_views;
  std::vector<moela::Program> programs;
  moela::Block workspace;
};
