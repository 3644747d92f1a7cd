// Launches operations: from a recorded struct to the launcher's own signature.
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/runtime_model.h"

namespace moela::cuda {
namespace {

class Operands {
 public:
  Operands(CudaBackend& backend, const Program& program, const Prepared& prepared,
           const moela_op& op)
      : backend_(backend), program_(program), prepared_(prepared), op_(op) {}

  Tensor in(int i) const { return tensor(op_.in[i]); }
  Tensor out(int i) const { return tensor(op_.out[i]); }
  Tensor product_in() const { return product_input(backend_, program_, prepared_, op_); }
  // Where an output is to be once more in BF16, or NULL.
  uint16_t* twin(int i) const {
    const int64_t at = prepared_.twins[op_.out[i]];
    return at < 0 ? nullptr : reinterpret_cast<uint16_t*>(backend_.twins.data() + at);
  }
  float* in_f32(int i) const { return static_cast<float*>(at(op_.in[i])); }
  float* out_f32(int i) const { return static_cast<float*>(at(op_.out[i])); }
  int32_t* in_ids(int i) const { return static_cast<int32_t*>(at(op_.in[i])); }
  int32_t* out_ids(int i) const { return static_cast<int32_t*>(at(op_.out[i])); }
  const Weight& weight(int i) const { return backend_.weights[op_.weight[i]]; }
  const Weight* maybe_weight(int i) const {
    return op_.weight[i] < 0 ? nullptr : &backend_.weights[op_.weight[i]];
  }

 private:
  void* at(int32_t id) const {
    return id < 0 ? nullptr : backend_.model.workspace->data() + program_.values[id].offset;
  }
  Tensor tensor(int32_t id) const { return {at(id), id < 0 ? MOELA_F32 : prepared_.dtypes[id]}; }

  CudaBackend& backend_;
  const Program& program_;
  const Prepared& prepared_;
  const moela_op& op_;
};

// Attention has memory of its own, so that no operation finds another's leavings where it needs
// zeros.
void give_scratch(CudaBackend& backend, int32_t kind, Launch& launch) {
  const CudaRange& range = kind == MOELA_OP_MLA_DECODE    ? backend.decode_scratch
                           : kind == MOELA_OP_MLA_PREFILL ? backend.prefill_scratch
                                                          : backend.scratch;
  launch.scratch = range.data();
  launch.scratch_bytes = static_cast<int64_t>(range.grown());
}

}  // namespace

Tensor product_input(const CudaBackend& backend, const Program& program, const Prepared& prepared,
                     const moela_op& op) {
  const int32_t id = op.in[0];
  if (prepared.twins[id] >= 0 && rounds_inputs(backend.weights[op.weight[0]])) {
    return {backend.twins.data() + prepared.twins[id], MOELA_BF16};
  }
  return {backend.model.workspace->data() + program.values[id].offset, prepared.dtypes[id]};
}

void execute(CudaBackend& backend, const Program& program, const Prepared& prepared, int32_t index,
             const Place& place) {
  const moela_op& op = program.ops[index];
  Launch at = place.launch;
  at.bucket = op.rows == MOELA_ROWS_LOGITS ? place.logits : place.rows;
  if (op.rows == MOELA_ROWS_ABSORBED && at.absorbed == 0) return;
  if (op.rows == MOELA_ROWS_PROJECTED && at.absorbed == place.rows) return;
  give_scratch(backend, op.kind, at);
  const Operands o(backend, program, prepared, op);
  const int32_t* n = op.n;
  switch (op.kind) {
    case MOELA_OP_EMBED:
      return embed(at, op.rows, n[0], o.weight(0), o.out_f32(0));
    case MOELA_OP_RMS_NORM:
      return rms_norm(at, op.rows, n[0], n[1], o.in_f32(0), o.weight(0), op.f[0], o.out(0),
                      o.twin(0));
    case MOELA_OP_LINEAR:
      return linear(at, op.rows, n[0], n[1], o.product_in(), o.weight(0), o.in_f32(1), o.out(0));
    case MOELA_OP_ROPE_TABLE:
      return rope_table(at, op.rows, n[0], o.weight(0), op.f[0], o.out_f32(0));
    case MOELA_OP_ROTARY:
      return rotary(at, op.rows, n[0], n[1], n[2], n[3], o.in_f32(1), o.out_f32(0));
    case MOELA_OP_CACHE_WRITE:
      return cache_write(at, op.rows, n[0], n[1], n[2], o.in_f32(0), o.in_f32(1), o.weight(0),
                         op.f[0]);
    case MOELA_OP_MLA_ABSORB:
      return mla_absorb(at, n[0], n[1], n[2], n[3], n[4], op.f[0], absorbed_rows(o.in(0)),
                        o.weight(0), o.out(0));
    case MOELA_OP_MLA_DECODE:
      return mla_decode(at, n[0], n[1], n[2], n[3], o.in(0), o.out(0));
    case MOELA_OP_MLA_EXPAND:
      return mla_expand(at, n[0], n[1], n[2], n[3], n[4], o.in(0), o.weight(0), o.out(0));
    case MOELA_OP_MLA_PREFILL:
      return mla_prefill(at, n[0], n[1], n[2], n[3], n[4], n[5], op.f[0], o.in(0), o.weight(0),
                         o.out(0));
    case MOELA_OP_ROUTER: {
      const RouterShape shape{n[0], n[1], n[2], n[3], n[4], n[5], n[6] != 0, op.f[0]};
      return router(at, op.rows, shape, o.in_f32(0), o.maybe_weight(0), o.out_ids(0), o.out_f32(1));
    }
    case MOELA_OP_MOE_PLAN:
      return moe_plan(at, op.rows, n[0], n[1], o.in_ids(0), o.out_ids(0));
    case MOELA_OP_GATE_UP:
      return gate_up(at, op.rows, n[0], n[1], n[2], n[3], o.product_in(), o.in_ids(1), o.weight(0),
                     o.weight(1), o.out(0));
    case MOELA_OP_EXPERT_DOWN:
      return expert_down(at, op.rows, n[0], n[1], n[2], n[3], o.product_in(), o.in_ids(1),
                         o.weight(0), o.out(0));
    case MOELA_OP_COMBINE:
      return combine(at, op.rows, n[0], n[1], o.in(0), o.in_f32(1), o.in_f32(2), o.in_f32(3),
                     o.out_f32(0));
    case MOELA_OP_GATHER:
      return gather(at, n[0], o.in_f32(0), o.out_f32(0));
    case MOELA_OP_LOGITS_OUT: {
      if (!place.host_logits) return;
      const int64_t bytes = int64_t{place.logits} * n[0] * 4;
      return check(
          cudaMemcpyAsync(place.host_logits, o.in_f32(0), bytes, cudaMemcpyDeviceToHost, at.stream),
          "copying logits from the GPU");
    }
    case MOELA_OP_LOGPROB:
      if (place.outputs.targets) logprob(at, place.outputs, n[0], o.in_f32(0));
      return;
    case MOELA_OP_SAMPLE:
      if (place.outputs.samplings) sample(at, place.outputs, n[0], o.in_f32(0));
      return;
  }
}

}  // namespace moela::cuda
