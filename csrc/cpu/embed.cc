// Token embeddings: out [R, d] = row tokens[i] of the table [V, d], as f32.
#include "tasks.h"

namespace moela {

void embed(Context& context, int32_t rows, int64_t d, const Weight& table, float* out) {
  const char* base = static_cast<const char*>(table.parts[0]);
  const int64_t row_bytes = d * dtype_bytes(table.dtype);
  for_rows(context, rows, d, [&](int64_t row) {
    const int64_t token = context.step.tokens[row];
    context.kernels.load(table.dtype, d, base + token * row_bytes, out + row * d);
  });
}

}  // namespace moela
