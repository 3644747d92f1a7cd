// Seeded random weights: see moela_generate.
#pragma once

#include <cstdint>

namespace moela {

// Elements [begin, begin + count) of the tensor named by `key`, as dtype F32 or BF16.
void generate(uint64_t seed, uint64_t key, uint64_t begin, uint64_t count, float mean,
              float deviation, int32_t dtype, void* out);

}  // namespace moela
