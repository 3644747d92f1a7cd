// Whether the layers of a decode program are those that persistent.cu runs in one launch.
#pragma once

#include "cuda/persistent.h"
#include "cuda/runtime_model.h"

namespace moela::cuda {

// The layers of a program, described in device memory.
struct PersistentPlan {
  PersistentStep step;
  std::unique_ptr<CudaMemory> layers, scratch;
};

// NULL when they are others.
std::unique_ptr<PersistentPlan> plan_persistent(CudaBackend& backend, const Program& program,
                                                const Place& place);

}  // namespace moela::cuda
