// The second half of SwiGLU, grouped by expert: out [R k, d] = in [R k, I] D_e^T, e the expert of
// the slot; D_e [d, I]. DeepSeekMoE, arXiv 2401.06066, eq. 3.
#include "experts.h"

namespace moela {

void expert_down(Context& context, int32_t, int64_t d, int64_t intermediate, int64_t,
                 int64_t experts, const float* in, const int32_t* plan, const Weight& down,
                 float* out) {
  const Kernels& kernels = context.kernels;
  const bool packed = packs(kernels, down.dtype);
  const auto blocks = expert_blocks(plan, experts, packed);
  const int64_t largest = largest_block(blocks);
  const int64_t width = expert_tile_width(context, blocks, d, intermediate);
  const std::vector<int64_t> counts = row_counts(blocks);
  PackedBlocks rows_packed(kernels, down.dtype, intermediate, counts);
  // Of a thread: a strip of results, and the gathered rows where they are not packed.
  const int64_t strip_floats = largest * EXPERT_STRIP;
  const int64_t floats = strip_floats + (packed ? 0 : largest * intermediate);
  reserve_scratch(context, floats);
  if (packed) {
    float* shared = context.scratch[0].get(floats + rows_packed.floats()) + floats;
    rows_packed.pack(context, shared, [&](int64_t block, int64_t i) {
      return in + blocks[block].slot(i) * intermediate;
    });
  }

  const int64_t tiles = ceil_div(d, width);
  const std::vector<ExpertTask> tasks = expert_tasks(blocks, tiles);
  context.threads.parallel_for(tasks.size(), [&](int64_t task, int thread) {
    if (cancelled(context)) return;
    const ExpertTask place = tasks[task];
    const int64_t index = place.block;
    const ExpertBlock& block = blocks[index];
    const int64_t begin = place.tile * width;
    const int64_t end = std::min(begin + width, d);
    float* strip = context.scratch[thread].get(floats);
    const float* x =
        packed ? nullptr : block_rows(block, 1, in, intermediate, strip + strip_floats);
    for (int64_t column = begin; column < end; column += EXPERT_STRIP) {
      const int64_t columns = std::min(EXPERT_STRIP, end - column);
      const WeightRows w = weight_rows(down, block.expert, column);
      if (packed) {
        kernels.gemm_packed(w, block.count, columns, rows_packed.block(index), strip, columns,
                            false);
      } else {
        product_nt(kernels, w, block.count, columns, x, intermediate, strip, columns, false);
      }
      for (int64_t i = 0; i < block.count; i++) {
        memcpy(out + block.slot(i) * d + column, strip + i * columns, columns * sizeof(float));
      }
    }
  });
}

}  // namespace moela
