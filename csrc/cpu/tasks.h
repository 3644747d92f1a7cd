// How operations cut their work into tasks. No cut changes a result: see kernels.h.
#pragma once

#include <algorithm>

#include "ops.h"

namespace moela {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows of a block where `rows` are cut into blocks of at most `most`, a multiple of 16: of about
// one size, so that none is left with a few, and of whole tiles of AMX.
inline int64_t block_rows_of(int64_t rows, int64_t most) {
  if (rows <= most) return std::max<int64_t>(rows, 1);
  return ceil_div(ceil_div(rows, ceil_div(rows, most)), 16) * 16;
}

inline bool cancelled(const Context& context) {
  return context.cancel && context.cancel->load(std::memory_order_relaxed) != 0;
}

// Grows the scratch of every thread: on the calling thread, because tasks must not throw.
inline void reserve_scratch(Context& context, int64_t floats) {
  for (Scratch& scratch : context.scratch) scratch.get(floats);
}

// Multiplications below which a task is not worth handing to another thread.
constexpr int64_t TASK_WORK = 32 * 1024;

// Columns [0, n) of a product are cut into tiles of this many: a multiple of 16 that gives each
// thread a few tasks, at most `widest` where that is work enough. `units`: other cuts of the same
// product; `work`: multiplications a column of a task.
inline int64_t tile_width(const Context& context, int64_t n, int64_t units, int64_t work,
                          int64_t widest) {
  const int64_t balanced = std::min(n * units / (context.threads.count() * 4), widest);
  const int64_t width = std::min(std::max(balanced, TASK_WORK / work), n);
  return std::max<int64_t>(ceil_div(width, 16), 1) * 16;
}

// Calls body(row) for the rows of a step, each of about `work` operations.
template <class Body>
void for_rows(Context& context, int32_t rows, int64_t work, const Body& body) {
  const int64_t begin = context.step.begin(rows), end = context.step.end(rows);
  const int64_t block = ceil_div(TASK_WORK, work);
  context.threads.parallel_for(ceil_div(end - begin, block), [&](int64_t task, int) {
    const int64_t first = begin + task * block;
    for (int64_t row = first; row < std::min(first + block, end); row++) body(row);
  });
}

}  // namespace moela
