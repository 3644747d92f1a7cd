// Queries moved into the latent space: out [R, H, r + dr] = scale * [q_nope W_UK | q_pe] of
// q [R, H, dn + dr], rows of the absorbed path. W_UK [dn, r] is read in place from kv_b_proj
// [H (dn + dv), r], so both paths of attention compute with one set of numbers.
// DeepSeek-V2, arXiv 2405.04434, section 2.1.2: W^UK is absorbed into W^UQ.
#include <cstring>

#include "mla.h"

namespace moela {

// A head's W_UK stays in the second-level cache while this many rows use it.
static constexpr int64_t ROW_BLOCK = 64;

void mla_absorb(Context& context, int64_t heads, int64_t dn, int64_t dr, int64_t dv, int64_t r,
                float scale, const float* q, const Weight& kv_b, float* out) {
  const int64_t n_rows = context.step.n_absorbed;
  const int64_t in_width = dn + dr, out_width = r + dr;
  context.threads.parallel_for(heads * ceil_div(n_rows, ROW_BLOCK), [&](int64_t task, int) {
    const int64_t head = task % heads;
    const int64_t row = task / heads * ROW_BLOCK;
    const int64_t block = std::min(ROW_BLOCK, n_rows - row);
    const float* from = q + (row * heads + head) * in_width;
    float* to = out + (row * heads + head) * out_width;
    product_nn(context.kernels, w_uk(kv_b, head, dn, dv), block, dn, from, heads * in_width, to,
               heads * out_width, false);
    for (int64_t i = 0; i < block; i++) {
      float* row_to = to + i * heads * out_width;
      memcpy(row_to + r, from + i * heads * in_width + dn, dr * sizeof(float));
      context.kernels.scale(out_width, scale, row_to);
    }
  });
}

}  // namespace moela
