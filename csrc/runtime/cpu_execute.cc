// Replays operations: from a recorded struct to the operation's own signature.
#include "runtime/cpu_run.h"

namespace moela {
namespace {

class Operands {
 public:
  Operands(const Program& program, const moela_op& op, const std::vector<const Weight*>& weights,
           char* workspace)
      : program_(program), op_(op), weights_(weights), workspace_(workspace) {}

  float* in(int i) const { return f32(op_.in[i]); }
  float* out(int i) const { return f32(op_.out[i]); }
  int32_t* in_ids(int i) const { return i32(op_.in[i]); }
  int32_t* out_ids(int i) const { return i32(op_.out[i]); }
  const Weight& weight(int i) const { return *weights_[op_.weight[i]]; }
  const Weight* maybe_weight(int i) const {
    return op_.weight[i] < 0 ? nullptr : weights_[op_.weight[i]];
  }

 private:
  char* at(int32_t id) const { return id < 0 ? nullptr : workspace_ + program_.values[id].offset; }
  float* f32(int32_t id) const { return reinterpret_cast<float*>(at(id)); }
  int32_t* i32(int32_t id) const { return reinterpret_cast<int32_t*>(at(id)); }

  const Program& program_;
  const moela_op& op_;
  const std::vector<const Weight*>& weights_;
  char* workspace_;
};

void run(const moela_op& op, const Operands& o, Context& context) {
  const int32_t* n = op.n;
  switch (op.kind) {
    case MOELA_OP_EMBED:
      return embed(context, op.rows, n[0], o.weight(0), o.out(0));
    case MOELA_OP_RMS_NORM:
      return rms_norm(context, op.rows, n[0], n[1], o.in(0), o.weight(0), op.f[0], o.out(0));
    case MOELA_OP_LINEAR:
      return linear(context, op.rows, n[0], n[1], o.in(0), o.weight(0), o.in(1), o.out(0));
    case MOELA_OP_ROPE_TABLE:
      return rope_table(context, op.rows, n[0], o.weight(0), op.f[0], o.out(0));
    case MOELA_OP_ROTARY:
      return rotary(context, op.rows, n[0], n[1], n[2], n[3], o.in(1), o.out(0));
    case MOELA_OP_CACHE_WRITE:
      return cache_write(context, op.rows, n[0], n[1], n[2], o.in(0), o.in(1), o.weight(0),
                         op.f[0]);
    case MOELA_OP_MLA_ABSORB:
      return mla_absorb(context, n[0], n[1], n[2], n[3], n[4], op.f[0], o.in(0), o.weight(0),
                        o.out(0));
    case MOELA_OP_MLA_DECODE:
      return mla_decode(context, n[0], n[1], n[2], n[3], o.in(0), o.out(0));
    case MOELA_OP_MLA_EXPAND:
      return mla_expand(context, n[0], n[1], n[2], n[3], n[4], o.in(0), o.weight(0), o.out(0));
    case MOELA_OP_MLA_PREFILL:
      return mla_prefill(context, n[0], n[1], n[2], n[3], n[4], n[5], op.f[0], o.in(0), o.weight(0),
                         o.out(0));
    case MOELA_OP_ROUTER: {
      const RouterShape shape{n[0], n[1], n[2], n[3], n[4], n[5], n[6] != 0, op.f[0]};
      return router(context, op.rows, shape, o.in(0), o.maybe_weight(0), o.out_ids(0), o.out(1));
    }
    case MOELA_OP_MOE_PLAN:
      return moe_plan(context, op.rows, n[0], n[1], o.in_ids(0), o.out_ids(0));
    case MOELA_OP_GATE_UP:
      return gate_up(context, op.rows, n[0], n[1], n[2], n[3], o.in(0), o.in_ids(1), o.weight(0),
                     o.weight(1), o.out(0));
    case MOELA_OP_EXPERT_DOWN:
      return expert_down(context, op.rows, n[0], n[1], n[2], n[3], o.in(0), o.in_ids(1),
                         o.weight(0), o.out(0));
    case MOELA_OP_COMBINE:
      return combine(context, op.rows, n[0], n[1], o.in(0), o.in(1), o.in(2), o.in(3), o.out(0));
    case MOELA_OP_GATHER:
      return gather(context, n[0], o.in(0), o.out(0));
    case MOELA_OP_LOGITS_OUT:
      return logits_out(context, n[0], o.in(0));
    case MOELA_OP_LOGPROB:
      return logprob(context, n[0], o.in(0));
    case MOELA_OP_SAMPLE:
      return sample(context, n[0], o.in(0));
  }
}

}  // namespace

bool execute(const Program& program, int32_t begin, int32_t end,
             const std::vector<const Weight*>& weights, char* workspace, Context& context) {
  const auto cancelled = [&] {
    return context.cancel && context.cancel->load(std::memory_order_relaxed) != 0;
  };
  for (int32_t i = begin; i < end; i++) {
    if (cancelled()) return false;
    const moela_op& op = program.ops[i];
    if (context.step.end(op.rows) <= context.step.begin(op.rows)) continue;
    run(op, Operands(program, op, weights, workspace), context);
  }
  return !cancelled();
}

}  // namespace moela
