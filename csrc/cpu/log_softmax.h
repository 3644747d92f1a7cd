// The normaliser of a softmax, in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace moela {

// ln sum exp x over n elements; -inf when all are.
inline double log_sum_exp(int64_t n, const float* x) {
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; i++) largest = std::max(largest, x[i]);
  if (std::isinf(largest)) return largest;
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += std::exp(x[i] - largest);
  return largest + std::log(sum);
}

}  // namespace moela
