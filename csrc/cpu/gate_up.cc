// The first half of SwiGLU, grouped by expert: out [R k, I] = silu(x G_e^T) * (x U_e^T), x the row
// slot / k of in [R, d] and e the expert of the slot; G_e, U_e [I, d]. Without a plan all rows go
// through part 0, a dense layer.
// Shazeer 2020, GLU Variants Improve Transformer, arXiv 2002.05202, and DeepSeekMoE,
// arXiv 2401.06066, eq. 3.
#include "experts.h"

namespace moela {

void gate_up(Context& context, int32_t rows, int64_t intermediate, int64_t d, int64_t top_k,
             int64_t experts, const float* in, const int32_t* plan, const Weight& gate,
             const Weight& up, float* out) {
  const auto blocks = plan ? expert_blocks(plan, experts)
                           : dense_blocks(context.step.begin(rows), context.step.end(rows));
  const int64_t n_blocks = blocks.size();
  const int64_t largest = largest_block(blocks);
  const int64_t width = expert_tile_width(context, blocks, intermediate, d);
  // Of a thread: the gathered rows, and a strip each of gate and up.
  const int64_t strip_floats = largest * EXPERT_STRIP;
  const int64_t floats = largest * d + 2 * strip_floats;
  reserve_scratch(context, floats);

  const Kernels& kernels = context.kernels;
  const int64_t tiles = ceil_div(intermediate, width);
  context.threads.parallel_for(n_blocks * tiles, [&](int64_t task, int thread) {
    if (cancelled(context)) return;
    // Neighbouring tasks use one tile: an expert's blocks follow one another.
    const ExpertBlock& block = blocks[task % n_blocks];
    const int64_t begin = task / n_blocks * width;
    const int64_t end = std::min(begin + width, intermediate);
    float* gates = context.scratch[thread].get(floats);
    float* ups = gates + strip_floats;
    const float* x = block_rows(block, top_k, in, d, ups + strip_floats);
    const auto product = [&](const Weight& weight, int64_t column, int64_t columns, float* to) {
      const char* w = static_cast<const char*>(weight.parts[block.expert]);
      kernels.gemm_nt(weight.dtype, block.count, columns, d, x, d,
                      w + column * d * dtype_bytes(weight.dtype), d, to, columns, false);
    };
    for (int64_t column = begin; column < end; column += EXPERT_STRIP) {
      const int64_t columns = std::min(EXPERT_STRIP, end - column);
      product(gate, column, columns, gates);
      product(up, column, columns, ups);
      for (int64_t i = 0; i < block.count; i++) {
        kernels.silu_mul(columns, gates + i * columns, ups + i * columns,
                         out + block.slot(i) * intermediate + column);
      }
    }
  });
}

}  // namespace moela
