// Attention as MQA over the latent: q_latent [R, H, r + dr] (scaled), rows of the absorbed path,
// out [R, H, r] = softmax over keys s <= position of (q . entry_s), times the latents entry_s[:r],
// entry_s [r + dr] being the cache row at s: one key and value for all heads.
// DeepSeek-V2, arXiv 2405.04434, section 2.1.2; the running softmax: arXiv 2205.14135.
#include "cuda/mla_decode.cuh"

namespace moela::cuda {

void mla_decode_split(const Launch& at, int32_t layer, int64_t heads, int64_t r, int64_t dr,
                      Tensor q_latent, Tensor out, bool invariant) {
  if (at.absorbed < 1) return;
  MlaDecodeArgs args = {at.step,  layer, int32_t(heads),     int32_t(r), int32_t(dr),
                        q_latent, out,   MLA_CLUSTER_SPLITS, {},         at.scratch};
  if (!at.hopper || r != MLA_FAST_R || dr != MLA_FAST_DR) return mla_decode_generic(at, args);
  const bool wide = heads >= MLA_WIDE_TILE;
  args.slots =
      mla_slots(at.scratch_bytes, args.heads, wide ? MLA_WIDE_TILE : MLA_HEAD_TILE, args.r);
  if (at.absorbed > MLA_ROWS_BYTES / 8) args.slots.capacity = 0;
  if (!wide) {
    if (at.absorbed < MLA_MANY_ROWS || !mla_decode_rows(at, args)) mla_decode_cluster(at, args);
    return;
  }
  args.splits = invariant ? MLA_WIDE_SPLITS : MlaSplits{};
  mla_decode_wgmma(at, args);
}

void mla_decode(const Launch& at, int32_t layer, int64_t heads, int64_t r, int64_t dr,
                Tensor q_latent, Tensor out) {
  mla_decode_split(at, layer, heads, r, dr, q_latent, out, true);
}

}  // namespace moela::cuda
