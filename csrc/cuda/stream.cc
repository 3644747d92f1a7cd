// Which kernels of the stream family a product takes: see stream.h.
#include "cuda/stream.h"

namespace moela::cuda {

void stream_product(const Launch& at, const StreamProduct& product) {
  switch (product.weight.dtype) {
    case MOELA_BF16:
      return stream_product_bf16(at, product);
    case MOELA_FP8:
      return stream_product_fp8(at, product);
    case MOELA_INT8:
      return stream_product_int8(at, product);
    case MOELA_INT4:
      return stream_product_int4(at, product);
    default:
      return stream_product_f32(at, product);
  }
}

}  // namespace moela::cuda
