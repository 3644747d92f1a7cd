// Products with INT8 weights: see stream_wide.cuh.
#include "cuda/stream_choose.cuh"

namespace moela::cuda {

void stream_product_int8(const Launch& at, const StreamProduct& product) {
  wide_product<MOELA_INT8>(at, product);
}

}  // namespace moela::cuda
