// The rows that ask for logits: out [n_logits, d] = rows logit_rows of in [n_rows, d].
#include <cstring>

#include "tasks.h"

namespace moela {

void gather(Context& context, int64_t d, const float* in, float* out) {
  for_rows(context, MOELA_ROWS_LOGITS, d, [&](int64_t row) {
    memcpy(out + row * d, in + context.step.logit_rows[row] * d, d * sizeof(float));
  });
}

}  // namespace moela
