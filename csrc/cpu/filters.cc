// Filters as Hugging Face's processors define them; each works on the distribution that the one
// before left, renormalised. Cuts go by descending probability, then by ascending token.
#include "cpu/filters.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "runtime/check_sampling.h"
#include "runtime/error.h"

namespace moela {
namespace {

constexpr float NEVER = -std::numeric_limits<float>::infinity();

bool before(const Candidate& a, const Candidate& b) {
  return a.x > b.x || (a.x == b.x && a.token < b.token);
}

// Repetition: once for each distinct token of prompt and output. Presence and frequency: output.
void penalise(const SamplingInput& input, float* x, int32_t* ids) {
  const moela_sampling& s = input.options;
  const int32_t n_kept = s.n_prompt + s.n_output;
  const auto collect = [&](int32_t first) {
    int32_t* end = std::copy(input.history() + first, input.history() + n_kept, ids);
    end = std::copy(input.drawn, input.drawn + input.n_drawn, end);
    std::sort(ids, end);
    return end;
  };
  if (s.repetition_penalty != 1) {
    const int32_t* end = std::unique(ids, collect(0));
    for (const int32_t* id = ids; id < end; id++) {
      x[*id] = x[*id] < 0 ? x[*id] * s.repetition_penalty : x[*id] / s.repetition_penalty;
    }
  }
  if (s.presence_penalty != 0 || s.frequency_penalty != 0) {
    const int32_t* end = collect(s.n_prompt);
    for (const int32_t* id = ids; id < end;) {
      const int32_t* next = std::upper_bound(id, end, *id);
      x[*id] -= static_cast<float>(next - id) * s.frequency_penalty + s.presence_penalty;
      id = next;
    }
  }
}

// Keeps the k largest and whatever equals the last of them.
int64_t top_k(int64_t k, int64_t n, Candidate* kept) {
  if (k <= 0 || k >= n) return n;
  std::nth_element(kept, kept + k - 1, kept + n, before);
  const float last = kept[k - 1].x;
  return std::partition(kept + k, kept + n, [&](const Candidate& c) { return c.x == last; }) - kept;
}

double mass(int64_t n, const Candidate* kept) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += std::exp(kept[i].x);
  return sum;
}

// Moves to the front the candidates, in the order of `earlier`, whose mass before them is below
// `limit`, and returns how many: at least one. Halves the range in question instead of sorting it.
template <class Earlier, class Mass>
int64_t take(double limit, int64_t n, Candidate* kept, const Earlier& earlier,
             const Mass& mass_of) {
  int64_t begin = 0, end = n;
  double sum = 0;
  while (end - begin > 64) {
    const int64_t middle = begin + (end - begin) / 2;
    std::nth_element(kept + begin, kept + middle, kept + end, earlier);
    double half = 0;
    for (int64_t i = begin; i < middle; i++) half += mass_of(kept[i]);
    if (sum + half >= limit) {
      end = middle;
    } else {
      sum += half;
      begin = middle;
    }
  }
  std::sort(kept + begin, kept + end, earlier);
  while (begin < end && (begin == 0 || sum < limit)) sum += mass_of(kept[begin++]);
  return begin;
}

// The three filters below get logits whose largest is 0.

// Keeps tokens, most likely first, while the mass before them is below p.
int64_t top_p(double p, int64_t n, Candidate* kept) {
  if (p >= 1) return n;
  const double whole = mass(n, kept);
  // All tokens below this together are less than what may be missing: none of them can be needed.
  const double floor = std::log((1 - p) * whole / static_cast<double>(n)) - 1e-6;
  n = std::partition(kept, kept + n, [&](const Candidate& c) { return c.x >= floor; }) - kept;
  return take(p * whole, n, kept, before,
              [](const Candidate& c) { return static_cast<double>(std::exp(c.x)); });
}

// Keeps what has at least p times the largest probability.
int64_t min_p(double p, int64_t n, Candidate* kept) {
  if (p <= 0) return n;
  const double floor = std::min(std::log(p), 0.0);
  return std::partition(kept, kept + n, [&](const Candidate& c) { return c.x >= floor; }) - kept;
}

// Keeps tokens whose surprise is closest to the entropy while the mass before them is below p
// (Meister et al., "Locally typical sampling", 2022).
int64_t typical_p(double p, int64_t n, Candidate* kept) {
  if (p >= 1) return n;
  const double normaliser = std::log(mass(n, kept));
  double entropy = 0;
  for (int64_t i = 0; i < n; i++) {
    const double surprise = normaliser - kept[i].x;
    entropy += std::exp(-surprise) * surprise;
  }
  const auto distance = [&](const Candidate& c) { return std::fabs(normaliser - c.x - entropy); };
  const auto earlier = [&](const Candidate& a, const Candidate& b) {
    const double left = distance(a), right = distance(b);
    return left < right || (left == right && a.token < b.token);
  };
  return take(p, n, kept, earlier, [&](const Candidate& c) { return std::exp(c.x - normaliser); });
}

// The largest and the least of x [n], NaN aside, and how many are numbers above -inf. In lanes,
// which the compiler makes vectors of.
struct Range {
  float largest, least;
  int64_t numbers;
};
Range range_of(int64_t n, const float* x) {
  constexpr int64_t LANES = 8;
  float most[LANES], least[LANES];
  int32_t numbers[LANES] = {};
  std::fill(most, most + LANES, NEVER);
  std::fill(least, least + LANES, -NEVER);
  const auto take = [&](int64_t lane, float value) {
    most[lane] = most[lane] < value ? value : most[lane];
    least[lane] = value < least[lane] ? value : least[lane];
    numbers[lane] += value > NEVER;
  };
  int64_t t = 0;
  for (; t + LANES <= n; t += LANES) {
    for (int64_t lane = 0; lane < LANES; lane++) take(lane, x[t + lane]);
  }
  for (; t < n; t++) take(0, x[t]);
  Range range{NEVER, -NEVER, 0};
  for (int64_t lane = 0; lane < LANES; lane++) {
    range.largest = std::max(range.largest, most[lane]);
    range.least = std::min(range.least, least[lane]);
    range.numbers += numbers[lane];
  }
  return range;
}

// Logits less the largest, over the temperature, in double: no temperature is too small for it.
int64_t scale(double temperature, int64_t n, Candidate* kept) {
  float largest = NEVER;
  for (int64_t i = 0; i < n; i++) largest = std::max(largest, kept[i].x);
  const double factor = 1 / temperature;
  int64_t left = 0;
  for (int64_t i = 0; i < n; i++) {
    const double below = static_cast<double>(kept[i].x) - largest;
    const float x = kept[i].x == largest ? 0 : static_cast<float>(below * factor);
    kept[left] = {x, kept[i].token};
    left += x > NEVER;
  }
  return left;
}

int64_t narrow(const moela_sampling& options, int64_t n, Candidate* kept) {
  n = top_p(options.top_p, n, kept);
  n = min_p(options.min_p, n, kept);
  return typical_p(options.typical_p, n, kept);
}

}  // namespace

void process_logits(const SamplingInput& input, int64_t vocab, const float* logits, float* x,
                    int32_t* ids) {
  const moela_sampling& s = input.options;
  std::copy(logits, logits + vocab, x);
  for (int32_t i = 0; i < s.n_bias; i++) {
    const int32_t* pair = input.aux + s.bias + 2 * i;
    float bias;
    memcpy(&bias, pair + 1, sizeof bias);
    x[pair[0]] += bias;
  }
  if (input.penalises()) penalise(input, x, ids);
  if (s.mask >= 0) {
    const uint32_t* mask = reinterpret_cast<const uint32_t*>(input.aux + s.mask);
    for (int64_t t = 0; t < vocab; t++) {
      if (!((mask[t / 32] >> (t % 32)) & 1)) x[t] = NEVER;
    }
  }
  if (s.index + input.n_drawn < s.min_index) {
    for (int32_t i = 0; i < s.n_stop; i++) {
      const int32_t token = input.aux[s.stop + i];
      if (token >= 0 && token < vocab) x[token] = NEVER;
    }
  }
}

int64_t filter(const moela_sampling& options, int64_t vocab, const float* x, Candidate* kept) {
  const Range range = range_of(vocab, x);
  const double factor = 1 / static_cast<double>(options.temperature);
  const double lowest = (static_cast<double>(range.least) - range.largest) * factor;
  if ((options.top_k <= 0 || options.top_k >= vocab) && range.numbers == vocab &&
      range.largest < -NEVER && lowest > -std::numeric_limits<float>::max()) {
    // What follows would keep all of them: the same without its branches.
    for (int64_t t = 0; t < vocab; t++) {
      const double below = static_cast<double>(x[t]) - range.largest;
      kept[t] = {static_cast<float>(below * factor), static_cast<int32_t>(t)};
    }
    return narrow(options, vocab, kept);
  }
  int64_t n = 0;
  for (int64_t t = 0; t < vocab; t++) {
    if (x[t] > NEVER) kept[n++] = {x[t], static_cast<int32_t>(t)};
  }
  if (n == 0) {
    kept[0] = {0, 0};
    return 1;
  }
  // Before the division, which might round different logits to equal ones.
  n = top_k(options.top_k, n, kept);
  n = scale(options.temperature, n, kept);
  return narrow(options, n, kept);
}

}  // namespace moela

int32_t moela_filter(const moela_sampling* sampling, const int32_t* aux, int32_t n_aux,
                     const float* logits, int64_t vocab, float* probabilities, char* err,
                     size_t err_len) {
  using namespace moela;
  return guard(err, err_len, [&] {
    require(sampling && logits && probabilities && vocab > 0 && vocab <= INT32_MAX && n_aux >= 0,
            "filter lacks an argument");
    check_sampling(*sampling, n_aux, vocab, aux);
    require(sampling->temperature > 0, "greedy sampling has no distribution");
    const SamplingInput input{*sampling, aux, nullptr, 0};
    std::vector<float> x(vocab);
    std::vector<int32_t> ids(input.n_history());
    std::vector<Candidate> kept(vocab);
    process_logits(input, vocab, logits, x.data(), ids.data());
    const int64_t n = filter(*sampling, vocab, x.data(), kept.data());
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += std::exp(static_cast<double>(kept[i].x));
    std::fill(probabilities, probabilities + vocab, 0.0f);
    for (int64_t i = 0; i < n; i++) {
      const double power = std::exp(static_cast<double>(kept[i].x));
      probabilities[kept[i].token] = static_cast<float>(power / sum);
    }
  });
}
