#include "runtime/control.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace moela {
namespace {

// One for all calls: a wake-up is rare and cheap, and the words outlive nobody.
std::mutex mutex;
std::condition_variable changed;

int32_t load(const int32_t* word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
void store(int32_t* word, int32_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }

}  // namespace

Control::Control(int32_t* words) : words_(words) {}

Control::~Control() {
  if (!words_) return;
  {
    std::lock_guard lock(mutex);
    store(words_ + MOELA_CONTROL_DONE, 1);
  }
  changed.notify_all();
}

void Control::publish(int32_t entries, int32_t steps) {
  if (!words_) return;
  {
    std::lock_guard lock(mutex);
    store(words_ + MOELA_CONTROL_STEPS, steps);
    store(words_ + MOELA_CONTROL_COUNT, entries);
  }
  changed.notify_all();
}

bool Control::yields() const { return words_ && load(words_ + MOELA_CONTROL_YIELD) != 0; }

bool Control::wait_for_masks() const {
  // The caller cannot wake us, and the masks are nearly always there already.
  for (int spins = 0; load(words_ + MOELA_CONTROL_MASKS) == 0; spins++) {
    if (load(words_ + MOELA_CONTROL_CANCEL) != 0) return false;
    if (spins > 100) std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  return true;
}

}  // namespace moela

int32_t moela_wait(const int32_t* control, int32_t seen, int32_t timeout_ms) {
  if (!control) return 0;
  std::unique_lock lock(moela::mutex);
  moela::changed.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] {
    return moela::load(control + MOELA_CONTROL_COUNT) != seen ||
           moela::load(control + MOELA_CONTROL_DONE) != 0;
  });
  return moela::load(control + MOELA_CONTROL_COUNT);
}
