// What stands between raw logits and a draw: bias, penalties, mask, temperature, filters.
#pragma once

#include <cstdint>

#include "moela.h"

namespace moela {

// A token that is still in, and its logit: after filter(), less the largest and over temperature.
struct Candidate {
  float x;
  int32_t token;
};

// A sampling with the lists it points to.
struct SamplingInput {
  const moela_sampling& options;
  const int32_t* aux;
  const int32_t* drawn;  // output tokens after those of the history
  int32_t n_drawn;

  const int32_t* history() const { return aux + options.history; }
  int32_t n_history() const { return options.n_prompt + options.n_output + n_drawn; }
  bool changes_logits() const {
    return options.n_bias > 0 || options.mask >= 0 || penalises() ||
           (options.n_stop > 0 && options.index + n_drawn < options.min_index);
  }
  bool penalises() const {
    return options.repetition_penalty != 1 || options.presence_penalty != 0 ||
           options.frequency_penalty != 0;
  }
};

// x [vocab] = logits after bias, penalties, mask and the stop tokens' floor. `ids` has room for the
// history.
void process_logits(const SamplingInput& input, int64_t vocab, const float* logits, float* x,
                    int32_t* ids);

// Divides x by the temperature (> 0) and applies top-k, top-p, min-p, typical-p, in this order.
// Writes what is left to `kept` [vocab], in no order, and returns how many: at least one. -inf and
// NaN are never kept, unless there is nothing else: then token 0 is.
int64_t filter(const moela_sampling& options, int64_t vocab, const float* x, Candidate* kept);

}  // namespace moela
