// What AMX's tile units give: bare loops of products, with operands in registers, in the
// first-level cache and in the second-level one, on one core and on two; best, median and worst of
// many short runs, as it changes within a second (docs/cpu.md).
//
// Build: g++ -std=c++17 -O3 -Icsrc -Icsrc/include bench/cpu/tiles.cc csrc/cpu/x86.cc with the flags
// of
//   csrc/CMakeLists.txt for *_amx.cc, -pthread. Arguments: the cores to pin threads to; default:
//   0 1.
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

#include "cpu/amx.h"
#include "cpu/x86.h"

using namespace moela;

namespace {

constexpr int RUNS = 40;
constexpr int64_t MEMORY = 2 << 20;  // of a thread: weights, then the input from the middle on

void pin(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

// Seconds of each run of f(thread), ascending; all threads begin together.
std::vector<double> times(const std::vector<int>& cores, const std::function<void(size_t)>& f) {
  using Clock = std::chrono::steady_clock;
  const int n = static_cast<int>(cores.size());
  std::atomic<int> ready{0};
  std::vector<std::vector<double>> seconds(n, std::vector<double>(RUNS));
  std::vector<std::thread> threads;
  for (int t = 0; t < n; t++) {
    threads.emplace_back([&, t] {
      pin(cores[t]);
      for (int run = 0; run < RUNS; run++) {
        ready++;
        while (ready.load() < n * (run + 1)) {
        }
        const auto start = Clock::now();
        f(t);
        seconds[t][run] = std::chrono::duration<double>(Clock::now() - start).count();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::vector<double> slowest(RUNS);
  for (int run = 0; run < RUNS; run++) {
    for (int t = 0; t < n; t++) slowest[run] = std::max(slowest[run], seconds[t][run]);
  }
  std::sort(slowest.begin(), slowest.end());
  return slowest;
}

// Two tiles of weights with two of the input, n times. Those of step i lie at `step` * i bytes of
// the weights and at TILE_BYTES * i of the input, again from the beginning after `wrap` bytes; rows
// of weights are `stride` bytes apart.
void loads(int64_t n, const char* memory, int64_t step, int64_t wrap, int64_t stride) {
  const char* x = memory + MEMORY / 2;
  for (int64_t i = 0; i < n; i++) {
    const int64_t at = i * step % wrap, input = i * TILE_BYTES % wrap;
    _tile_loadd(4, memory + at, stride);
    _tile_loadd(6, x + input, 64);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, x + MEMORY / 4 + input, 64);
    _tile_dpbssd(1, 4, 7);
    _tile_loadd(5, memory + MEMORY / 4 + at, stride);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
}

void registers(int64_t n, const char*) {
  for (int64_t i = 0; i < n; i++) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
}

struct Loop {
  const char* name;
  std::function<void(int64_t, const char*)> body;
};

}  // namespace

int main(int argc, char** argv) {
  if (!x86_has_amx()) {
    printf("no AMX\n");
    return 1;
  }
  std::vector<int> cores;
  for (int i = 1; i < argc; i++) cores.push_back(std::atoi(argv[i]));
  if (cores.empty()) cores = {0, 1};
  const Loop loops[] = {
      {"registers", registers},
      {"first level",
       [](int64_t n, const char* m) { loads(n, m, TILE_BYTES, 4 * TILE_BYTES, 64); }},
      {"second level", [](int64_t n, const char* m) { loads(n, m, TILE_BYTES, MEMORY / 8, 64); }},
      {"weights' rows 2048 bytes apart",
       [](int64_t n, const char* m) { loads(n, m, 64, 2048, 2048); }},
  };
  std::vector<char*> memory;
  for (size_t t = 0; t < cores.size(); t++) {
    memory.push_back(static_cast<char*>(std::aligned_alloc(4096, MEMORY)));
    memset(memory.back(), 0, MEMORY);
  }
  // A few milliseconds each.
  const int64_t n = 200000;
  for (size_t count : {size_t{1}, cores.size()}) {
    const std::vector<int> some(cores.begin(), cores.begin() + count);
    for (const Loop& loop : loops) {
      const auto seconds = times(some, [&](size_t t) {
        const Tiles tiles;
        loop.body(n, memory[t]);
      });
      const auto rate = [&](double s) {
        return 4 * 2.0 * 16 * 16 * 64 * n * static_cast<double>(count) / s / 1e9;
      };
      printf("%zu cores, %-31s %6.0f GOP/s, median %6.0f, worst %6.0f\n", count, loop.name,
             rate(seconds.front()), rate(seconds[RUNS / 2]), rate(seconds.back()));
      fflush(stdout);
    }
  }
  for (char* m : memory) std::free(m);
}
