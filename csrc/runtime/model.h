// What a model owns: files, weights, pools, programs and their common workspace.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "cpu/ops.h"
#include "moela.h"
#include "runtime/backend.h"
#include "runtime/device.h"
#include "runtime/host_memory.h"
#include "runtime/program.h"

namespace moela {

struct StoredWeight {
  Weight view;
  Block memory;                // where a converted or generated weight lives
  std::vector<char> constant;  // where a constant lives
  uint64_t mapped_bytes = 0;
  // On a GPU: all parts, then all scales, in its memory, which `view` then points to. Parts and
  // scales are `part_bytes` and `scale_part_bytes` apart.
  std::unique_ptr<DeviceMemory> device;
  int64_t part_bytes = 0;
  int64_t scale_part_bytes = 0;
};

struct Pool {
  PagePool view;
  std::unique_ptr<DeviceMemory> memory;
  Block used;  // uint8 [max_pages]: written since it was released
  int64_t n_used = 0;

  // Says that a page is about to be written, or that it holds nothing any more.
  void mark(int32_t page) {
    if (used.data()[page]) return;
    memory->use(page * view.page_bytes(), view.page_bytes());
    used.data()[page] = 1;
    n_used++;
  }
  void unmark(int32_t page) {
    if (!used.data()[page]) return;
    memory->discard(page * view.page_bytes(), view.page_bytes());
    used.data()[page] = 0;
    n_used--;
  }
};

}  // namespace moela

struct moela_model {
  explicit moela_model(moela_device* device)
      : device(device), backend(device->make_backend(*this)) {}

  moela_device* device;
  std::mutex mutex;  // serialises the calls
  std::vector<std::unique_ptr<moela::MappedFile>> files;
  std::vector<moela::StoredWeight> weights;
  std::vector<moela::Pool> pools;
  std::vector<moela::PagePool> pool_views;
  std::vector<moela::Program> programs;
  std::unique_ptr<moela::DeviceMemory> workspace;
  std::unique_ptr<moela::Backend> backend;  // goes first: it may still use what is above
};
