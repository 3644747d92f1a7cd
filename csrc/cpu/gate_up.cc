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
  const Kernels& kernels = context.kernels;
  const bool packed = packs(kernels, gate.dtype);
  const auto blocks = plan ? expert_blocks(plan, experts, packed)
                           : dense_blocks(context.step.begin(rows), context.step.end(rows), packed);
  const int64_t largest = largest_block(blocks);
  const int64_t width = expert_tile_width(context, blocks, intermediate, d);
  const std::vector<int64_t> counts = row_counts(blocks);
  PackedBlocks rows_packed(kernels, gate.dtype, d, counts);
  // Of a thread: a strip each of gate and up, and the gathered rows where they are not packed.
  const int64_t strip_floats = largest * EXPERT_STRIP;
  const int64_t floats = 2 * strip_floats + (packed ? 0 : largest * d);
  reserve_scratch(context, floats);
  if (packed) {
    float* shared = context.scratch[0].get(floats + rows_packed.floats()) + floats;
    rows_packed.pack(context, shared, [&](int64_t block, int64_t i) {
      return in + blocks[block].slot(i) / top_k * d;
    });
  }

  const int64_t tiles = ceil_div(intermediate, width);
  const std::vector<ExpertTask> tasks = expert_tasks(blocks, tiles);
  context.threads.parallel_for(tasks.size(), [&](int64_t task, int thread) {
    if (cancelled(context)) return;
    const ExpertTask place = tasks[task];
    const int64_t index = place.block;
    const ExpertBlock& block = blocks[index];
    const int64_t begin = place.tile * width;
    const int64_t end = std::min(begin + width, intermediate);
    float* gates = context.scratch[thread].get(floats);
    float* ups = gates + strip_floats;
    const float* x = packed ? nullptr : block_rows(block, top_k, in, d, ups + strip_floats);
    const auto product = [&](const Weight& weight, int64_t column, int64_t columns, float* to) {
      const WeightRows w = weight_rows(weight, block.expert, column);
      if (packed) {
        kernels.gemm_packed(w, block.count, columns, rows_packed.block(index), to, columns, false);
      } else {
        product_nt(kernels, w, block.count, columns, x, d, to, columns, false);
      }
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
