// Products with BF16 weights: see stream_wide.cuh.
#include "cuda/stream_choose.cuh"

namespace moela::cuda {

void stream_product_bf16(const Launch& at, const StreamProduct& product) {
  if (!stream_product_ring(at, product)) wide_product<MOELA_BF16>(at, product);
}

}  // namespace moela::cuda
