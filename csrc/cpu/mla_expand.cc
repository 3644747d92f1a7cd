// Attention results out of the latent space: out [R, H, dv] = W_UV o of o_latent [R, H, r], rows of
// the absorbed path. W_UV [dv, r] is read in place from kv_b_proj [H (dn + dv), r].
// DeepSeek-V2, arXiv 2405.04434, section 2.1.2: v = W^UV c, taken after the weighted sum over c.
#include "mla.h"

namespace moela {

// A head's W_UV stays in the second-level cache while this many rows use it.
static constexpr int64_t ROW_BLOCK = 64;

void mla_expand(Context& context, int64_t heads, int64_t dn, int64_t /*dr*/, int64_t dv, int64_t r,
                const float* o_latent, const Weight& kv_b, float* out) {
  const int64_t n_rows = context.step.n_absorbed;
  context.threads.parallel_for(heads * ceil_div(n_rows, ROW_BLOCK), [&](int64_t task, int) {
    const int64_t head = task % heads;
    const int64_t row = task / heads * ROW_BLOCK;
    product_nt(context.kernels, w_uv(kv_b, head, dn, dv), std::min(ROW_BLOCK, n_rows - row), dv,
               o_latent + (row * heads + head) * r, heads * r, out + (row * heads + head) * dv,
               heads * dv, false);
  });
}

}  // namespace moela
