// Steps on the CPU.
#pragma once

#include "runtime/backend.h"
#include "runtime/model.h"

namespace moela {

void run_on_cpu(moela_model& model, const Program& program, const StepArguments& arguments,
                Control& control);

// Runs ops [begin, end) of a program on the workspace; returns false when cancelled between two.
bool execute(const Program& program, int32_t begin, int32_t end,
             const std::vector<const Weight*>& weights, char* workspace, Context& context);

}  // namespace moela
