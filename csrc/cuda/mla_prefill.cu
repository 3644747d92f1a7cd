// Attention as MHA over keys and values up-projected from the cache, rows of the projected path:
// q [R, H, dn + dr] (rotated), out [R, H, dv] = softmax over keys s <= position of
// scale * (q_nope . k_s + q_pe . kpe_s), times v_s, where [k_s | v_s] of a head = kv_b_proj c_s and
// [c_s | kpe_s] is the cache row at s. DeepSeek-V2, arXiv 2405.04434, eq. 37 to 47.
//
// Three kernels a pass (mla_prefill_plan.h): gather the cache rows of a window, up-project them,
// attend. The fast path (mla_prefill_*_sm90.cu) is for 128 + 64 / 128 on Hopper.
#include "cuda/mla_prefill.cuh"

namespace moela::cuda {

bool mla_prefill_fast(bool hopper, const Weight& kv_b, int64_t dn, int64_t dr, int64_t dv,
                      int64_t r) {
  return hopper && kv_b.dtype != MOELA_F32 && dn == 128 && dr == 64 && dv == 128 && r % 64 == 0;
}

void mla_prefill(const Launch& at, int32_t layer, int64_t heads, int64_t dn, int64_t dr, int64_t dv,
                 int64_t r, float scale, Tensor q, const Weight& kv_b, Tensor out) {
  const int64_t rows = at.bucket;
  if (rows <= 0 || at.context <= 0) return;
  const MlaPrefillShape shape = {heads, dn, dr, dv, r};
  const bool fast = mla_prefill_fast(at.hopper, kv_b, dn, dr, dv, r);
  const int64_t keys = std::max(at.context, at.projected_keys);
  const auto plan = mla_prefill_plan(shape, rows, keys, fast, at.scratch_bytes);
  if (plan.window < 1) {
    throw Error(MOELA_ERR_INTERNAL,
                format("Cannot prefill: %lld bytes of scratch memory do not hold a block of keys",
                       static_cast<long long>(at.scratch_bytes)));
  }
  MlaPrefillPass pass{};
  pass.shape = shape;
  pass.layer = layer;
  pass.scale = scale;
  pass.tables = reinterpret_cast<MlaPrefillTables*>(at.scratch);
  pass.latents = at.scratch + plan.latents;
  pass.rotary = at.scratch + plan.rotary;
  pass.weights = at.scratch + plan.weights;
  pass.keys = at.scratch + plan.keys;
  pass.state = reinterpret_cast<float*>(at.scratch + plan.state);
  pass.first = true;
  for (int64_t head = 0; head < heads; head += plan.heads) {
    for (int64_t block = 0; block < plan.blocks; block += plan.window) {
      pass.head = static_cast<int32_t>(head);
      pass.heads = static_cast<int32_t>(std::min(plan.heads, heads - head));
      pass.block = static_cast<int32_t>(block);
      pass.blocks = static_cast<int32_t>(std::min(plan.window, plan.blocks - block));
      mla_prefill_gather(at, pass, fast, kv_b);
      if (fast) {
        mla_prefill_project_sm90(at, pass);
        mla_prefill_attend_sm90(at, pass, q, out);
      } else {
        mla_prefill_project(at, pass, kv_b);
        mla_prefill_attend(at, pass, q, out);
      }
      pass.first = false;
    }
  }
}

}  // namespace moela::cuda
