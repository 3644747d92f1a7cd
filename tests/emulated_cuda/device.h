// The emulated device.
#pragma once

#include <cstddef>
#include <mutex>

namespace emulated {

constexpr size_t MEMORY = size_t{4} << 30;
// Odd, so that nothing is dealt out evenly by chance; with clusters, two of eight blocks.
constexpr int MULTIPROCESSORS = __CUDA_ARCH__ >= 900 ? 17 : 5;
constexpr int MOST_SHARED = (__CUDA_ARCH__ >= 900 ? 227 : 163) << 10;

// Calls are one at a time, whichever thread they come from.
std::recursive_mutex& mutex();
class Lock {
  std::lock_guard<std::recursive_mutex> guard_{mutex()};
};

// What the next call that can fails with.
void report(const std::string& what);
// All that streams still have to do.
void finish_all();

}  // namespace emulated
