// Which operations of a mixed program go together in one launch.
#pragma once

#include "cuda/runtime_model.h"

namespace moela::cuda {

// Launches operation `index` of a program with as many after it as go with it, and returns how
// many that were. The bits are those of the operations one by one.
int32_t execute_mixed(CudaBackend& backend, const Program& program, const Prepared& prepared,
                      int32_t index, const Place& place);

// Whether operation `index` is the ROTARY of what a product of wgmma gives, so that the product
// itself may rotate; `product` is then that operation.
bool rotates_product(const Program& program, const std::vector<Weight>& weights, bool hopper,
                     int32_t index, int32_t& product);

}  // namespace moela::cuda
