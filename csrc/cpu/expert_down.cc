// The second half of SwiGLU, grouped by expert: out [R k, d] = in [R k, I] D_e^T, e the expert of
// the slot; D_e [d, I]. DeepSeekMoE, arXiv 2401.06066, eq. 3.
#include "experts.h"

namespace moela {

void expert_down(Context& context, int32_t, int64_t d, int64_t intermediate, int64_t,
                 int64_t experts, const float* in, const int32_t* plan, const Weight& down,
                 float* out) {
  const auto blocks = expert_blocks(plan, experts);
  const int64_t n_blocks = blocks.size();
  const int64_t largest = largest_block(blocks);
  const int64_t width = expert_tile_width(context, blocks, d, intermediate);
  // Of a thread: the gathered rows, and a strip of their results.
  const int64_t strip_floats = largest * EXPERT_STRIP;
  const int64_t floats = largest * intermediate + strip_floats;
  reserve_scratch(context, floats);

  const int64_t row_bytes = intermediate * dtype_bytes(down.dtype);
  const int64_t tiles = ceil_div(d, width);
  context.threads.parallel_for(n_blocks * tiles, [&](int64_t task, int thread) {
    if (cancelled(context)) return;
    const ExpertBlock& block = blocks[task % n_blocks];
    const int64_t begin = task / n_blocks * width;
    const int64_t end = std::min(begin + width, d);
    float* strip = context.scratch[thread].get(floats);
    const float* x = block_rows(block, 1, in, intermediate, strip + strip_floats);
    const char* w = static_cast<const char*>(down.parts[block.expert]);
    for (int64_t column = begin; column < end; column += EXPERT_STRIP) {
      const int64_t columns = std::min(EXPERT_STRIP, end - column);
      context.kernels.gemm_nt(down.dtype, block.count, columns, intermediate, x, intermediate,
                              w + column * row_bytes, intermediate, strip, columns, false);
      for (int64_t i = 0; i < block.count; i++) {
        memcpy(out + block.slot(i) * d + column, strip + i * columns, columns * sizeof(float));
      }
    }
  });
}

}  // namespace moela
