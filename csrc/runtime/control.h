// The words that a running call shares with its caller.
#pragma once

#include <cstdint>

#include "moela.h"

namespace moela {

// Writes to the caller's control words and wakes whoever waits on them; control may be NULL.
class Control {
 public:
  explicit Control(int32_t* words);
  ~Control();  // says that the call is done
  Control(const Control&) = delete;
  Control& operator=(const Control&) = delete;

  void publish(int32_t entries, int32_t steps);
  // Whether the caller wants the call to end after the step at hand.
  bool yields() const;
  // Waits until the caller has written its masks; false when it cancels instead.
  bool wait_for_masks() const;

 private:
  int32_t* words_;
};

}  // namespace moela
