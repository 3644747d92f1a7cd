// Memory of the emulated GPU.
#pragma once

#include <cstddef>

namespace emulated {

// What memory holds that nobody has written: as floats NaN, as integers -1.
constexpr int POISON = 0xff;

// Fills the static shared memory of kernels with it.
void poison_static_shared();

}  // namespace emulated
