// Products with FP8 weights: see stream_wide.cuh.
#include "cuda/stream_choose.cuh"

namespace moela::cuda {

void stream_product_fp8(const Launch& at, const StreamProduct& product) {
  wide_product<MOELA_FP8>(at, product);
}

}  // namespace moela::cuda
