// Rotary embedding in place on x [R, heads, head_dim]: elements [offset, offset + dr) of each head
// are rotated by table [R, dr], pairs (2i, 2i + 1) as the checkpoints lay them out:
// (y_2i, y_2i+1) = (x_2i cos_i - x_2i+1 sin_i, x_2i sin_i + x_2i+1 cos_i).
// arXiv 2104.09864, eq. 34.
#include "mla.h"

namespace moela {

void rotary(Context& context, int32_t rows, int64_t heads, int64_t head_dim, int64_t offset,
            int64_t dr, const float* table, float* in_out) {
  for_rows(context, rows, heads * dr, [&](int64_t row) {
    for (int64_t head = 0; head < heads; head++) {
      rotate_pairs(dr, table + row * dr, in_out + (row * heads + head) * head_dim + offset);
    }
  });
}

}  // namespace moela
