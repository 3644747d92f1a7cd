// Log-probabilities of given tokens: x[target] - ln sum exp x, NaN where there is no target.
// A block a slice of a row, then a warp a row.
#include "cuda/vocab.cuh"

namespace moela::cuda {
namespace {

__global__ void __launch_bounds__(SLICE_THREADS)
    logprob_slices(Step step, const int32_t* targets, int vocab, const float* logits,
                   SliceSum* slices) {
  __shared__ float room[16];
  wait_for_previous();
  allow_next();
  const int64_t row = blockIdx.y;
  if (row >= step.counts->n_logits || targets[row] < 0) return;
  float x[SLICE_EACH];
  load_slice(logits + row * vocab, blockIdx.x, vocab, x);
  const SliceSum sum = slice_sum(x, room);
  if (threadIdx.x == 0) slices[row * gridDim.x + blockIdx.x] = sum;
}

__global__ void __launch_bounds__(32)
    logprob_rows(Step step, const int32_t* targets, int vocab, const float* logits,
                 const SliceSum* slices, int n_slices, float* logprobs) {
  wait_for_previous();
  allow_next();
  const int64_t row = blockIdx.x;
  if (row >= step.counts->n_logits) return;
  const int32_t target = targets[row];
  if (target < 0) {
    if (threadIdx.x == 0) logprobs[row] = __int_as_float(0x7fc00000);
    return;
  }
  const double normaliser = merge_slices(slices + row * n_slices, n_slices, sizeof(SliceSum));
  if (threadIdx.x == 0)
    logprobs[row] = static_cast<float>(logits[row * vocab + target] - normaliser);
}

}  // namespace

void logprob(const Launch& at, const Outputs& outputs, int64_t vocab, const float* logits) {
  if (!outputs.targets || at.bucket == 0) return;
  if (at.scratch_bytes < logprob_scratch(vocab, at.bucket)) {
    throw Error(MOELA_ERR_INTERNAL, "logprob: too little scratch memory");
  }
  const int slices = static_cast<int>(vocab_slices(vocab));
  SliceSum* sums = reinterpret_cast<SliceSum*>(at.scratch);
  launch(at, logprob_slices, dim3(slices, at.bucket), dim3(SLICE_THREADS), 0, at.step,
         outputs.targets, static_cast<int>(vocab), logits, sums);
  launch(at, logprob_rows, dim3(at.bucket), dim3(32), 0, at.step, outputs.targets,
         static_cast<int>(vocab), logits, sums, slices, outputs.logprobs);
}

}  // namespace moela::cuda
