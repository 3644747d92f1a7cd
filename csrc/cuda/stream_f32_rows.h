// F32 products of many rows: see stream_f32_rows.cu.
#pragma once

#include "cuda/stream_tiles.cuh"

namespace moela::cuda {

// False where it does not take the product.
bool stream_product_f32_rows(const Launch&, const StreamArguments&, int64_t slots);

}  // namespace moela::cuda
