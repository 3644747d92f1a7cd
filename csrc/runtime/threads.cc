#include "runtime/threads.h"

#include <chrono>
#include <system_error>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace moela {

namespace {

// Of Run::next.
constexpr int INDEX_BITS = 40;
constexpr int64_t INDEX_MASK = (int64_t{1} << INDEX_BITS) - 1;
constexpr int64_t JOB_MASK = (int64_t{1} << (63 - INDEX_BITS)) - 1;

// Workers spin this long before they sleep: long enough for the gap between two operations, short
// enough to leave the processor to JavaScript.
constexpr std::chrono::microseconds SPIN{50};

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

Threads::Threads(int count) : runs_(new Run[count > 1 ? count : 1]) {
  workers_.reserve(count > 1 ? count - 1 : 0);
  for (int thread = 1; thread < count; thread++) {
    try {
      workers_.emplace_back([this, thread] { work(thread); });
    } catch (const std::system_error&) {
      break;  // a limit on threads: go on with fewer
    }
  }
  // Before the first job is posted, which is when workers read it.
  count_ = static_cast<int>(workers_.size()) + 1;
}

Threads::~Threads() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Threads::run(int64_t tasks, Call call, const void* context) {
  if (tasks <= 0) return;
  if (tasks == 1 || workers_.empty()) {
    for (int64_t task = 0; task < tasks; task++) call(context, task, 0);
    return;
  }
  // A worker that is late takes an index of an old job; drain_run() recognises it because the job's
  // number changes before its fields do.
  const uint32_t job = job_.load(std::memory_order_relaxed) + 1;
  job_.store(job, std::memory_order_seq_cst);
  tasks_.store(tasks, std::memory_order_seq_cst);
  call_ = call;
  context_ = context;
  done_.store(0, std::memory_order_relaxed);
  for (int owner = 0; owner < count_; owner++) {
    const int64_t begin = tasks * owner / count_;
    runs_[owner].next.store((static_cast<int64_t>(job) & JOB_MASK) << INDEX_BITS | begin,
                            std::memory_order_seq_cst);
  }
  posted_.store(job, std::memory_order_seq_cst);
  if (asleep_.load(std::memory_order_seq_cst) > 0) {
    std::lock_guard lock(mutex_);
    wake_.notify_all();
  }
  drain(0);
  for (int spins = 0; done_.load(std::memory_order_acquire) < tasks; spins++) {
    if (spins < 4096) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void Threads::drain(int thread) {
  for (int i = 0; i < count_; i++) {
    if (!drain_run((thread + i) % count_, thread)) return;
  }
}

// Takes the tasks that are left of a run; false when the job has ended.
bool Threads::drain_run(int owner, int thread) {
  for (;;) {
    const int64_t ticket = runs_[owner].next.fetch_add(1, std::memory_order_seq_cst);
    const int64_t tasks = tasks_.load(std::memory_order_seq_cst);
    const uint32_t job = job_.load(std::memory_order_seq_cst);
    if ((static_cast<int64_t>(job) & JOB_MASK) != ticket >> INDEX_BITS) return false;
    const int64_t task = ticket & INDEX_MASK;
    if (task >= tasks * (owner + 1) / count_) return true;
    // The job cannot end before this task has, so its fields stay.
    call_(context_, task, thread);
    done_.fetch_add(1, std::memory_order_release);
  }
}

void Threads::work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    const auto start = std::chrono::steady_clock::now();
    while (posted_.load(std::memory_order_acquire) == seen && !stop_) {
      for (int i = 0; i < 16; i++) pause();
      if (std::chrono::steady_clock::now() - start > SPIN) {
        std::unique_lock lock(mutex_);
        asleep_++;
        wake_.wait(lock, [&] { return posted_.load(std::memory_order_seq_cst) != seen || stop_; });
        asleep_--;
        break;
      }
    }
    if (stop_) return;
    seen = posted_.load(std::memory_order_acquire);
    drain(thread);
  }
}

}  // namespace moela
