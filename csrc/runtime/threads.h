// A pool of threads that stays alive between operations.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
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

  int count() const { return count_; }

  // Calls body(task, thread) for each task in [0, tasks), on thread in [0, count()). Each thread
  // has a run of consecutive tasks, which it takes in ascending order, so that it reads memory on
  // and on; when it has no more, it takes from the others' runs. Returns when all are done. Not
  // reentrant; one caller at a time. The body must not throw.
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
  bool drain_run(int owner, int thread);

  // Index of the next task of a thread's run in the low bits, the job it belongs to above them. On
  // a line of the cache of its own.
  struct alignas(64) Run {
    std::atomic<int64_t> next{0};
  };

  std::vector<std::thread> workers_;
  int count_ = 1;  // of runs: as many as threads
  std::unique_ptr<Run[]> runs_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<bool> stop_{false};
  std::atomic<int> asleep_{0};
  std::atomic<uint32_t> job_{0};     // changes before the fields of a job do
  std::atomic<uint32_t> posted_{0};  // and this after them
  std::atomic<int64_t> tasks_{0};
  std::atomic<int64_t> done_{0};
  Call call_ = nullptr;
  const void* context_ = nullptr;
};

}  // namespace moela
