#include "runtime/device.h"

#include <chrono>
#include <cstring>
#include <string>

#include "runtime/error.h"
#include "runtime/host_memory.h"

namespace moela {
namespace {

const char* const KERNEL_NAMES[] = {"auto", "reference", "avx2", "avx512", "amx", "generic", "sm90"};

// The best first.
std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    found.push_back(&avx2_kernels());
  }
#endif
  found.push_back(&reference_kernels());
  return found;
}

const Kernels& choose_kernels(int32_t wanted) {
  const auto found = available_kernels();
  if (wanted == MOELA_KERNELS_AUTO) return *found.front();
  std::string names;
  for (const Kernels* kernels : found) {
    if (kernels->id == wanted) return *kernels;
    names += std::string(names.empty() ? "" : ", ") + KERNEL_NAMES[kernels->id];
  }
  require(wanted > 0 && wanted <= MOELA_KERNELS_SM90, "unknown kernels");
  throw Error(MOELA_ERR_DEVICE, format("kernels '%s' are not available here; these are: %s",
                                       KERNEL_NAMES[wanted], names.c_str()));
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

}  // namespace
}  // namespace moela

using namespace moela;

moela_device::moela_device(const moela_device_options& options)
    : kernels(&choose_kernels(options.kernels)) {
  require(options.index == 0, "the CPU library has one device, index 0");
  require(options.threads >= 0 && options.threads <= 1024, "threads must be in [0, 1024]");
  threads = std::make_unique<Threads>(options.threads ? options.threads : usable_processors());
  scratch.resize(threads->count());
}

moela_device* moela_device_create(const moela_device_options* options, char* err, size_t err_len) {
  moela_device* device = nullptr;
  guard(err, err_len, [&] {
    require(options && options->size == sizeof *options, "device options of another size");
    device = new moela_device(*options);
  });
  return device;
}

void moela_device_destroy(moela_device* device) { delete device; }

int32_t moela_device_query(moela_device* device, moela_device_info* info, char* err,
                           size_t err_len) {
  return guard(err, err_len, [&] {
    require(device && info && info->size == sizeof *info, "device info of another size");
    info->kernels = device->kernels->id;
    info->available = 0;
    for (const Kernels* kernels : available_kernels()) info->available |= 1 << kernels->id;
    info->threads = device->threads->count();
    const MemoryState memory = memory_state();
    info->memory_total = memory.total;
    info->memory_free = memory.free;
    processor_name(info->name, sizeof info->name);
  });
}

int32_t moela_device_bandwidth(moela_device* device, uint64_t bytes, int32_t repeats, double* rate,
                               char* err, size_t err_len) {
  return guard(err, err_len, [&] {
    require(device && rate && repeats > 0, "bandwidth needs a device and repeats");
    constexpr uint64_t CHUNK = 1 << 20;
    const int64_t chunks = static_cast<int64_t>(bytes / CHUNK);
    require(chunks > 0, "bandwidth needs at least 1 MiB");
    Block block(chunks * CHUNK, "bandwidth measurement");
    std::lock_guard lock(device->mutex);
    memset(block.data(), 1, block.bytes());
    std::vector<uint64_t> sums(chunks);
    *rate = 0;
    for (int32_t i = 0; i < repeats; i++) {
      const auto start = std::chrono::steady_clock::now();
      device->threads->parallel_for(chunks, [&](int64_t chunk, int) {
        const uint64_t* words = reinterpret_cast<const uint64_t*>(block.data() + chunk * CHUNK);
        // Eight sums, so that the additions never wait for one another.
        uint64_t sum[8] = {};
        for (uint64_t w = 0; w < CHUNK / 8; w += 8) {
          for (int lane = 0; lane < 8; lane++) sum[lane] += words[w + lane];
        }
        for (uint64_t lane : sum) sums[chunk] += lane;
      });
      const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
      *rate = std::max(*rate, block.bytes() / time.count());
    }
    // The sums are used, so that the reads cannot be left out.
    uint64_t total = 0;
    for (uint64_t sum : sums) total += sum;
    if (total == 0) *rate = 0;
  });
}
