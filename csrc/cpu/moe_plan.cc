// Which rows each expert gets: from chosen [R, k] the plan [E + 1 + R k], E + 1 offsets and then
// the slots (row * k + rank) sorted by expert, then by slot: a counting sort. An id outside [0, E)
// is left out, so that no operation can be led out of bounds.
#include "tasks.h"

namespace moela {

void moe_plan(Context& context, int32_t rows, int64_t experts, int64_t top_k, const int32_t* chosen,
              int32_t* plan) {
  const int64_t begin = context.step.begin(rows) * top_k, end = context.step.end(rows) * top_k;
  const auto exists = [&](int32_t expert) { return expert >= 0 && expert < experts; };
  // Counts, one place to the right; then where each expert's slots begin.
  std::fill_n(plan, experts + 1, 0);
  for (int64_t slot = begin; slot < end; slot++) {
    if (exists(chosen[slot])) plan[chosen[slot] + 1]++;
  }
  for (int64_t expert = 0; expert < experts; expert++) plan[expert + 1] += plan[expert];
  // Offsets move on as slots are placed, each to where the next expert's begin.
  int32_t* slots = plan + experts + 1;
  for (int64_t slot = begin; slot < end; slot++) {
    if (exists(chosen[slot])) slots[plan[chosen[slot]]++] = static_cast<int32_t>(slot);
  }
  for (int64_t expert = experts; expert > 0; expert--) plan[expert] = plan[expert - 1];
  plan[0] = 0;
}

}  // namespace moela
