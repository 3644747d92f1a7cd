// Draws the next token: Gumbel-max over what the filters leave. The noise of a token is a function
// of seed, index and token alone, so a draw survives forks, preemption and batching.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/filters.h"
#include "cpu/log_softmax.h"
#include "cpu/noise.h"
#include "cpu/ops.h"
#include "cpu/philox.h"

namespace moela {
namespace {

// The largest, the lowest of equals; NaN is never it. Token 0 when there is nothing else.
int32_t argmax(int64_t vocab, const float* x) {
  int64_t best = 0;
  float value = -std::numeric_limits<float>::infinity();
  for (int64_t t = 0; t < vocab; t++) {
    if (x[t] > value) {
      value = x[t];
      best = t;
    }
  }
  return static_cast<int32_t>(best);
}

// The largest of those that a mask allows, whatever its value.
int32_t likeliest_allowed(int64_t vocab, const float* x, const int32_t* mask) {
  int64_t best = -1;
  for (int64_t t = 0; t < vocab; t++) {
    const bool allowed = (static_cast<uint32_t>(mask[t / 32]) >> (t % 32)) & 1;
    if (allowed && (best < 0 || x[t] > x[best])) best = t;
  }
  return static_cast<int32_t>(best < 0 ? 0 : best);
}

// Adding standard Gumbel noise to logits and taking the largest draws from their softmax.
int32_t draw(NoiseWords noise_words, uint64_t seed, int32_t index, int64_t n,
             const Candidate* kept) {
  // The most likely one first: what cannot beat it even with the largest noise needs none.
  const Candidate* likely = kept;
  for (const Candidate* c = kept; c < kept + n; c++) {
    if (c->x > likely->x) likely = c;
  }
  double best = likely->x + gumbel(noise_word(seed, index, likely->token));
  int32_t token = likely->token;
  uint32_t least = least_word(best - likely->x);
  const auto consider = [&](const Candidate& c, uint32_t word) {
    if (word < least) return;
    const double score = c.x + gumbel(word);
    if (score > best || (score == best && c.token < token)) {
      best = score;
      token = c.token;
      least = least_word(best - likely->x);
    }
  };
  int64_t i = 0;
  for (; i + NOISE_BLOCK <= n; i += NOISE_BLOCK) {
    float largest = kept[i].x;
    for (int64_t j = 1; j < NOISE_BLOCK; j++) largest = std::max(largest, kept[i + j].x);
    if (largest + MAX_GUMBEL < best) continue;
    uint32_t words[NOISE_BLOCK];
    noise_words(seed, index, kept + i, words);
    for (int64_t j = 0; j < NOISE_BLOCK; j++) consider(kept[i + j], words[j]);
  }
  for (; i < n; i++) consider(kept[i], noise_word(seed, index, kept[i].token));
  return token;
}

int32_t float_bits(double value) {
  const float rounded = static_cast<float>(value);
  int32_t bits;
  memcpy(&bits, &rounded, 4);
  return bits;
}

// The n largest logits as (token, log-softmax), descending, the lowest of equals first.
void write_top(int64_t vocab, const float* logits, double normaliser, int32_t n, Candidate* all,
               int32_t* out) {
  for (int64_t t = 0; t < vocab; t++) {
    const bool number = !std::isnan(logits[t]);
    all[t] = {number ? logits[t] : -std::numeric_limits<float>::infinity(),
              static_cast<int32_t>(t)};
  }
  std::partial_sort(all, all + n, all + vocab, [](const Candidate& a, const Candidate& b) {
    return a.x > b.x || (a.x == b.x && a.token < b.token);
  });
  for (int32_t i = 0; i < n; i++) {
    out[2 * i] = all[i].token;
    out[2 * i + 1] = float_bits(all[i].x - normaliser);
  }
}

NoiseWords noise_of(const Kernels& kernels) {
#if defined(__x86_64__)
  if (kernels.id != MOELA_KERNELS_REFERENCE) return noise_words_avx2;
#endif
  return noise_words_reference;
}

}  // namespace

void noise_words_reference(uint64_t seed, uint32_t index, const Candidate* kept, uint32_t* words) {
  for (int64_t i = 0; i < NOISE_BLOCK; i++) words[i] = noise_word(seed, index, kept[i].token);
}

void sample(Context& context, int64_t vocab, const float* in) {
  const StepView& step = context.step;
  if (!step.samplings) return;
  int64_t history = 0;
  for (int32_t row = 0; row < step.n_logits; row++) {
    const moela_sampling& s = step.samplings[row];
    history = std::max<int64_t>(history, int64_t{s.n_prompt} + s.n_output + step.n_drawn);
  }
  const NoiseWords noise = noise_of(context.kernels);
  // Processed logits, candidates (two words each), history.
  for (Scratch& scratch : context.scratch) scratch.get(3 * vocab + history);
  context.threads.parallel_for(step.n_logits, [&](int64_t row, int thread) {
    const moela_sampling& s = step.samplings[row];
    const float* logits = in + row * vocab;
    float* x = context.scratch[thread].get(3 * vocab + history);
    Candidate* kept = reinterpret_cast<Candidate*>(x + vocab);
    int32_t* ids = reinterpret_cast<int32_t*>(x + 3 * vocab);
    const SamplingInput input{
        s, step.aux, step.drawn ? step.drawn + row * step.drawn_stride : nullptr, step.n_drawn};
    const float* processed = logits;
    if (input.changes_logits()) {
      process_logits(input, vocab, logits, x, ids);
      processed = x;
    }
    int32_t token = s.temperature == 0 ? argmax(vocab, processed)
                                       : draw(noise, s.seed, s.index + step.n_drawn,
                                              filter(s, vocab, processed, kept), kept);
    // A mask wins over whatever forbids all that it allows.
    if (s.mask >= 0 && !(processed[token] > -std::numeric_limits<float>::infinity())) {
      token = likeliest_allowed(vocab, logits, step.aux + s.mask);
    }
    const int32_t* stop = step.aux + s.stop;
    int32_t* entry = step.entries_out + row * step.entry_words;
    entry[0] = step.first_sampling + static_cast<int32_t>(row);
    entry[1] = token;
    entry[2] = float_bits(std::numeric_limits<double>::quiet_NaN());
    entry[3] = s.n_stop > 0 && std::find(stop, stop + s.n_stop, token) != stop + s.n_stop;
    if (s.top_logprobs < 0) return;
    const double normaliser = log_sum_exp(vocab, logits);
    entry[2] = float_bits(logits[token] - normaliser);
    write_top(vocab, logits, normaliser, s.top_logprobs, kept, entry + 4);
  });
}

}  // namespace moela
