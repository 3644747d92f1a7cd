// Log-probabilities of given tokens: x[target] - ln sum exp x.
#include <cmath>
#include <limits>

#include "cpu/log_softmax.h"
#include "cpu/ops.h"

namespace moela {

void logprob(Context& context, int64_t vocab, const float* in) {
  const StepView& step = context.step;
  if (!step.targets) return;
  context.threads.parallel_for(step.n_logits, [&](int64_t row, int) {
    const int32_t target = step.targets[row];
    const float* x = in + row * vocab;
    step.logprobs_out[row] = target < 0 ? std::numeric_limits<float>::quiet_NaN()
                                        : static_cast<float>(x[target] - log_sum_exp(vocab, x));
  });
}

}  // namespace moela
