// Which operations of a decode program go together in one launch at one row: see fused.h.
#pragma once

#include "cuda/runtime_model.h"

namespace moela::cuda {

// Bytes of CudaBackend::fused that a program needs.
uint64_t fused_bytes(const Program& program);

// Launches operations [0, tail) of a program for one row, fused where a pattern fits.
void execute_fused(CudaBackend& backend, const Program& program, const Prepared& prepared,
                   const Place& place);

}  // namespace moela::cuda
