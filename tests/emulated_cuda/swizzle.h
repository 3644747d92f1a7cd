// Where bytes of rows of 128 lie in shared memory: 16-byte pieces are swapped by the row's number.
#pragma once

#include "fibers.h"

namespace emulated {

inline void* swizzled(uint32_t address) { return pointer_of(address ^ (address >> 7 & 7) << 4); }

}  // namespace emulated
