// A CPU as a device: its threads, its kernels, and the process's own memory.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>

#include "runtime/backend.h"
#include "runtime/cpu_run.h"
#include "runtime/device.h"
#include "runtime/error.h"
#include "runtime/host_memory.h"

namespace moela {
namespace {

const Kernels& choose_kernels(int32_t wanted) {
  const auto found = host_kernels();
  if (wanted == MOELA_KERNELS_AUTO) return *found.front();
  std::string names;
  for (const Kernels* kernels : found) {
    if (kernels->id == wanted) return *kernels;
    names += std::string(names.empty() ? "" : ", ") + kernels_name(kernels->id);
  }
  throw Error(MOELA_ERR_DEVICE, format("kernels '%s' are not available here; these are: %s",
                                       kernels_name(wanted), names.c_str()));
}

void processor_name(char* out, size_t out_len) {
  snprintf(out, out_len, "CPU");
  if (FILE* file = fopen("/proc/cpuinfo", "re")) {
    char line[256];
    while (fgets(line, sizeof line, file)) {
      const char* colon = strchr(line, ':');
      if (strncmp(line, "model name", 10) == 0 && colon) {
        snprintf(out, out_len, "%.*s", static_cast<int>(strcspn(colon + 2, "\n")), colon + 2);
        break;
      }
    }
    fclose(file);
  }
}

class HostMemory : public DeviceMemory {
 public:
  HostMemory(uint64_t bytes, const char* name, bool reserve) : block_(bytes, name, reserve) {
    data_ = block_.data();
    bytes_ = bytes;
  }
  void discard(uint64_t offset, uint64_t bytes) override { block_.discard(offset, bytes); }

 private:
  Block block_;
};

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(moela_model& model) : model_(model) {}
  void run(const Program& program, const StepArguments& arguments, Control& control) override {
    run_on_cpu(model_, program, arguments, control);
  }

 private:
  moela_model& model_;
};

class CpuDevice : public moela_device {
 public:
  explicit CpuDevice(const moela_device_options& options)
      : moela_device(&choose_kernels(options.kernels), options.threads) {
    require(options.index == 0, "the CPU library has one device, index 0");
  }

  void query(moela_device_info& info) override {
    info.kernels = kernels->id;
    info.available = 0;
    for (const Kernels* set : host_kernels()) info.available |= 1 << set->id;
    const MemoryState memory = memory_state();
    info.memory_total = memory.total;
    info.memory_free = memory.free;
    processor_name(info.name, sizeof info.name);
  }

  double bandwidth(uint64_t bytes, int32_t repeats) override {
    constexpr uint64_t CHUNK = 1 << 20;
    const int64_t chunks = static_cast<int64_t>(bytes / CHUNK);
    Block block(chunks * CHUNK, "bandwidth measurement");
    std::lock_guard lock(mutex);
    memset(block.data(), 1, block.bytes());
    std::vector<uint64_t> sums(chunks);
    double rate = 0;
    for (int32_t i = 0; i < repeats; i++) {
      const auto start = std::chrono::steady_clock::now();
      threads->parallel_for(chunks, [&](int64_t chunk, int) {
        const uint64_t* words = reinterpret_cast<const uint64_t*>(block.data() + chunk * CHUNK);
        // Eight sums, so that the additions never wait for one another.
        uint64_t sum[8] = {};
        for (uint64_t w = 0; w < CHUNK / 8; w += 8) {
          for (int lane = 0; lane < 8; lane++) sum[lane] += words[w + lane];
        }
        for (uint64_t lane : sum) sums[chunk] += lane;
      });
      const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
      rate = std::max(rate, block.bytes() / time.count());
    }
    // The sums are used, so that the reads cannot be left out.
    uint64_t total = 0;
    for (uint64_t sum : sums) total += sum;
    return total == 0 ? 0 : rate;
  }

  std::unique_ptr<DeviceMemory> allocate(uint64_t bytes, const char* name, bool reserve) override {
    return std::make_unique<HostMemory>(bytes, name, reserve);
  }
  void copy_in(void* to, const void* from, uint64_t bytes) override { memcpy(to, from, bytes); }
  void copy_out(void* to, const void* from, uint64_t bytes) override { memcpy(to, from, bytes); }
  void copy_within(void* to, const void* from, uint64_t bytes) override {
    memmove(to, from, bytes);
  }
  std::unique_ptr<Backend> make_backend(moela_model& model) override {
    return std::make_unique<CpuBackend>(model);
  }
};

}  // namespace

moela_device* open_device(const moela_device_options& options) { return new CpuDevice(options); }

}  // namespace moela
