// Where someone is in a ring of STAGES stages whose barriers tell a round from the next by parity.
#pragma once

#include <cstdint>

namespace moela::cuda {

template <int STAGES>
struct RingPlace {
  int stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) {
      stage = 0;
      phase ^= 1;
    }
  }
};

}  // namespace moela::cuda
