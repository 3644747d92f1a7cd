// Copies in [n_logits, V] to the caller's logits when there is room for them.
#include <cstring>

#include "tasks.h"

namespace moela {

void logits_out(Context& context, int64_t vocab, const float* in) {
  float* out = context.step.logits_out;
  if (!out) return;
  for_rows(context, MOELA_ROWS_LOGITS, vocab, [&](int64_t row) {
    memcpy(out + row * vocab, in + row * vocab, vocab * sizeof(float));
  });
}

}  // namespace moela
