// A pool of threads that stays alive between operations.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace moela {

class Threads {
 public:
  // `count` threads, the calling one included.
  explicit Threads(int count);
  ~Threads();
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  int count() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(task, thread) for each task in [0, tasks), in no order, on thread in [0, count()).
  // Returns when all are done. Not reentrant; one caller at a time. The body must not throw.
  template <class Body>
  void parallel_for(int64_t tasks, const Body& body) {
    run(
        tasks,
        [](const void* context, int64_t task, int thread) {
          (*static_cast<const Body*>(context))(task, thread);
        },
        &body);
  }

 private:
  using Call = void (*)(const void* context, int64_t task, int thread);
  void run(int64_t tasks, Call call, const void* context);
  void work(int thread);
  void drain(int thread);

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<bool> stop_{false};
  std::atomic<int> asleep_{0};
  std::atomic<uint32_t> job_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<int64_t> tasks_{0};
  std::atomic<int64_t> done_{0};
  Call call_ = nullptr;
  const void* context_ = nullptr;
};

}  // namespace moela
