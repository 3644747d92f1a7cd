#include "runtime/check_sampling.h"

#include "runtime/error.h"

namespace moela {

void check_sampling(const moela_sampling& s, int64_t n_aux, int64_t vocab, const int32_t* aux) {
  const auto within = [&](int64_t begin, int64_t count, const char* what) {
    require(begin >= 0 && count >= 0 && begin <= n_aux && count <= n_aux - begin, what);
  };
  const auto token = [&](int32_t id, const char* what) { require(id >= 0 && id < vocab, what); };
  require(n_aux >= 0 && (aux || n_aux == 0), "the lists of a sampling are missing");
  require(s.temperature >= 0 && s.top_p > 0 && s.min_p >= 0 && s.typical_p > 0 &&
              s.repetition_penalty > 0 && s.top_k >= 0 && s.index >= 0 &&
              s.index <= INT32_MAX - MAX_STEPS,
          "a sampling option is out of range");
  require(s.n_prompt >= 0 && s.n_output >= 0 && s.n_bias >= 0 && s.n_stop >= 0,
          "a sampling list has a negative length");
  within(s.history, int64_t{s.n_prompt} + s.n_output, "a history is out of range");
  within(s.bias, int64_t{s.n_bias} * 2, "a bias list is out of range");
  within(s.stop, s.n_stop, "a stop list is out of range");
  if (s.mask != -1) within(s.mask, (vocab + 31) / 32, "a mask is out of range");
  for (int32_t t = 0; t < s.n_prompt + s.n_output; t++) {
    token(aux[s.history + t], "a token of a history is out of range");
  }
  for (int32_t t = 0; t < s.n_bias; t++) {
    token(aux[s.bias + 2 * t], "a biased token is out of range");
  }
}

}  // namespace moela
