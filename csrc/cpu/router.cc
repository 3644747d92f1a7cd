// The gate of DeepSeekMoE: from logits [R, E] the k experts of each row in descending order of
// choice, and their weights.
//   s = softmax(logits) or sigmoid(logits); selection = s + bias
//   groups (n_group runs of E / n_group experts; topk_group of them stay):
//     none; or max of the group, the others' scores become 0 (V2, group_limited_greedy);
//     or sum of the group's two largest, the others' selection becomes -inf (V3, noaux_tc)
//   chosen = top k of selection; weight = factor * s, first divided by their sum when normalised
// Ties go to the lowest index, and NaN counts as -inf. DeepSeek-V2, arXiv 2405.04434, eq. 20 to 22
// and section 2.2.2; DeepSeek-V3, arXiv 2412.19437, eq. 12 to 16.
#include <cmath>
#include <limits>

#include "tasks.h"

namespace moela {

namespace {

constexpr float INFINITE = std::numeric_limits<float>::infinity();

// Elementwise by std::exp: equal logits have equal scores wherever they stand, so ties stay ties.
void score(int32_t scoring, int64_t experts, const float* logits, float* scores) {
  if (scoring == MOELA_SCORE_SIGMOID) {
    for (int64_t e = 0; e < experts; e++) scores[e] = 1 / (1 + std::exp(-logits[e]));
    return;
  }
  float largest = logits[0];
  for (int64_t e = 1; e < experts; e++) largest = std::max(largest, logits[e]);
  float sum = 0;
  for (int64_t e = 0; e < experts; e++) sum += scores[e] = std::exp(logits[e] - largest);
  for (int64_t e = 0; e < experts; e++) scores[e] /= sum;
}

// The index of the largest of values[n] that comes after `last` in descending order, ties
// ascending; last = -1: the very largest. No value is NaN.
int64_t next_largest(int64_t n, const float* values, int64_t last) {
  int64_t best = -1;
  for (int64_t i = 0; i < n; i++) {
    const bool taken =
        last >= 0 && (values[i] > values[last] || (values[i] == values[last] && i <= last));
    if (!taken && (best < 0 || values[i] > values[best])) best = i;
  }
  return best;
}

float group_score(int32_t kind, int64_t size, const float* selection) {
  const int64_t largest = next_largest(size, selection, -1);
  if (kind == MOELA_GROUP_MAX || size < 2) return selection[largest];
  const float sum = selection[largest] + selection[next_largest(size, selection, largest)];
  return std::isnan(sum) ? -INFINITE : sum;
}

// Takes the groups that are not among the topk_group best out of the choice.
void exclude_groups(const RouterShape& shape, float* scores, float* selection, float* groups) {
  const int64_t size = shape.experts / shape.n_group;
  for (int64_t g = 0; g < shape.n_group; g++) {
    groups[g] = group_score(shape.group_score, size, selection + g * size);
  }
  int64_t group = -1;
  for (int64_t i = 0; i < shape.n_group; i++) {
    group = next_largest(shape.n_group, groups, group);
    if (i < shape.topk_group) continue;
    for (int64_t e = group * size; e < (group + 1) * size; e++) {
      const bool by_max = shape.group_score == MOELA_GROUP_MAX;
      selection[e] = by_max ? 0 : -INFINITE;
      if (by_max) scores[e] = 0;
    }
  }
}

}  // namespace

void router(Context& context, int32_t rows, const RouterShape& shape, const float* logits,
            const Weight* bias, int32_t* experts, float* weights) {
  const int64_t begin = context.step.begin(rows);
  const int64_t n = shape.experts;
  const int64_t floats = 3 * n + shape.n_group;
  reserve_scratch(context, floats);
  context.threads.parallel_for(context.step.end(rows) - begin, [&](int64_t task, int thread) {
    const int64_t row = begin + task;
    float* scores = context.scratch[thread].get(floats);
    float* selection = scores + n;
    float* biases = selection + n;
    score(shape.scoring, n, logits + row * n, scores);
    if (bias) context.kernels.load(bias->dtype, n, bias->parts[0], biases);
    for (int64_t e = 0; e < n; e++) {
      const float chosen_by = bias ? scores[e] + biases[e] : scores[e];
      selection[e] = std::isnan(chosen_by) ? -INFINITE : chosen_by;
    }
    if (shape.group_score != MOELA_GROUP_NONE) exclude_groups(shape, scores, selection, biases + n);

    int32_t* chosen = experts + row * shape.top_k;
    float* weight = weights + row * shape.top_k;
    int64_t expert = -1;
    float sum = 0;
    for (int64_t k = 0; k < shape.top_k; k++) {
      expert = next_largest(n, selection, expert);
      chosen[k] = static_cast<int32_t>(expert);
      sum += weight[k] = scores[expert];
    }
    const float divisor = shape.normalise ? sum + 1e-20f : 1;
    for (int64_t k = 0; k < shape.top_k; k++) weight[k] = weight[k] / divisor * shape.factor;
  });
}

}  // namespace moela
