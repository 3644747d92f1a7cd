// What the operations of multi-head latent attention share.
#pragma once

#include <algorithm>
#include <cmath>

#include "products.h"

namespace moela {

// kv_b_proj [heads (dn + dv), r]: per head dn rows of W_UK, then dv rows of W_UV.
inline WeightRows w_uk(const Weight& kv_b, int64_t head, int64_t dn, int64_t dv) {
  return weight_rows(kv_b, 0, head * (dn + dv));
}
inline WeightRows w_uv(const Weight& kv_b, int64_t head, int64_t dn, int64_t dv) {
  return weight_rows(kv_b, 0, head * (dn + dv) + dn);
}

// Rotates the pairs (2i, 2i + 1) of x[dr] by table = cos[dr / 2], sin[dr / 2].
inline void rotate_pairs(int64_t dr, const float* table, float* x) {
  const float* cosine = table;
  const float* sine = table + dr / 2;
  for (int64_t i = 0; i < dr / 2; i++) {
    const float even = x[2 * i], odd = x[2 * i + 1];
    x[2 * i] = even * cosine[i] - odd * sine[i];
    x[2 * i + 1] = even * sine[i] + odd * cosine[i];
  }
}

// The softmax over the keys seen so far: sum of exp(score - max), and its weighted values in `o`
// beside it, not yet divided by the sum.
struct RunningSoftmax {
  float max;
  float sum;
};

// Takes n >= 1 more scores: they become exp(score - new max), and `o` [width] is rescaled to the
// new max, so that the caller only adds scores . values. `first`: nothing was seen yet; o is not
// read.
inline void softmax_step(const Kernels& kernels, bool first, int64_t n, float* scores,
                         RunningSoftmax& state, int64_t width, float* o) {
  const float largest = kernels.max(n, scores);
  if (first) {
    state.max = largest;
    state.sum = kernels.exp_sum(n, state.max, scores);
    return;
  }
  if (largest > state.max) {
    const float shrink = std::exp(state.max - largest);
    kernels.scale(width, shrink, o);
    state.sum *= shrink;
    state.max = largest;
  }
  state.sum += kernels.exp_sum(n, state.max, scores);
}

}  // namespace moela
