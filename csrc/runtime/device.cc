// Devices at the boundary.
#include "runtime/device.h"

#include <string>

#include "cpu/x86.h"
#include "runtime/error.h"
#include "runtime/host_memory.h"

namespace moela {

const char* kernels_name(int32_t id) {
  static const char* const names[] = {"auto", "reference", "avx2", "avx512",
                                      "amx",  "generic",   "sm90", "sm90-persistent"};
  return names[id];
}

std::vector<const Kernels*> host_kernels() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  if (x86_has_amx()) found.push_back(&amx_kernels());
  if (x86_has_avx512()) found.push_back(&avx512_kernels());
  if (x86_has_avx2()) found.push_back(&avx2_kernels());
#endif
  found.push_back(&reference_kernels());
  return found;
}

}  // namespace moela

using namespace moela;

moela_device::moela_device(const Kernels* kernels, int count) : kernels(kernels) {
  require(count >= 0 && count <= 1024, "threads must be in [0, 1024]");
  threads = std::make_unique<Threads>(count ? count : usable_processors());
  scratch.resize(threads->count());
}

moela_device* moela_device_create(const moela_device_options* options, char* err, size_t err_len) {
  moela_device* device = nullptr;
  guard(err, err_len, [&] {
    require(options && options->size == sizeof *options, "device options of another size");
    require(options->kernels >= 0 && options->kernels <= MOELA_KERNELS_SM90_PERSISTENT,
            "unknown kernels");
    device = open_device(*options);
  });
  return device;
}

void moela_device_destroy(moela_device* device) { delete device; }

int32_t moela_device_query(moela_device* device, moela_device_info* info, char* err,
                           size_t err_len) {
  return guard(err, err_len, [&] {
    require(device && info && info->size == sizeof *info, "device info of another size");
    info->threads = device->threads->count();
    device->query(*info);
  });
}

int32_t moela_device_bandwidth(moela_device* device, uint64_t bytes, int32_t repeats, double* rate,
                               char* err, size_t err_len) {
  return guard(err, err_len, [&] {
    require(device && rate && repeats > 0, "bandwidth needs a device and repeats");
    require(bytes >= 1 << 20, "bandwidth needs at least 1 MiB");
    *rate = device->bandwidth(bytes, repeats);
  });
}
