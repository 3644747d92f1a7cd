// What the cache keeps of a token: kv_a [R, r + dr] = [compressed latent | shared key] becomes
// [RMSNorm(latent) * norm | rotated key], stored in the pool's type at the row's position.
// DeepSeek-V2, arXiv 2405.04434, eq. 41 to 43 (c_t^KV and k_t^R are all that is cached).
#include <cstring>

#include "cache_format.h"
#include "mla.h"

namespace moela {

void cache_write(Context& context, int32_t rows, int32_t layer, int64_t r, int64_t dr,
                 const float* kv_a, const float* table, const Weight& norm, float epsilon) {
  const StepView& step = context.step;
  const int64_t begin = step.begin(rows);
  const int64_t width = r + dr;
  reserve_scratch(context, width);
  context.threads.parallel_for(step.end(rows) - begin, [&](int64_t task, int thread) {
    const int64_t row = begin + task;
    const float* from = kv_a + row * width;
    float* entry = context.scratch[thread].get(width);
    context.kernels.rms_norm(r, from, norm.dtype, norm.parts[0], epsilon, entry);
    memcpy(entry + r, from + r, dr * sizeof(float));
    rotate_pairs(dr, table + row * dr, entry + r);

    const moela_segment& segment = step.segments[step.row_segment[row]];
    const PagePool& pool = step.pools[segment.pool];
    const int64_t position = step.positions[row];
    const int32_t page = step.pages[segment.page + position / MOELA_PAGE_TOKENS];
    const int64_t slot = position % MOELA_PAGE_TOKENS;
    char* to = pool.at(page, layer) + slot * pool.row_bytes();
    if (has_scales(pool.dtype)) {
      encode_entry(pool.dtype, r, dr, entry, reinterpret_cast<uint8_t*>(to),
                   pool.scales_at(page, layer) + 2 * slot);
    } else {
      context.kernels.store(pool.dtype, width, entry, to);
    }
  });
}

}  // namespace moela
