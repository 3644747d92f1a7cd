#include "cuda/fuse.h"

#include <algorithm>

#include "cuda/fused.h"
#include "cuda/launch.h"

namespace moela::cuda {
namespace {

constexpr int32_t MOST_PRODUCTS = 4;

class Fuser {
 public:
  Fuser(CudaBackend& backend, const Program& program, const Prepared& prepared, const Place& place)
      : backend_(backend), program_(program), prepared_(prepared), place_(place) {
    launch_ = place.launch;
    launch_.bucket = 1;
    readers_.resize(program.values.size());
    for (const moela_op& op : program.ops) {
      for (int32_t id : op.in) {
        if (id >= 0) readers_[id]++;
      }
    }
  }

  void run() {
    for (int32_t i = 0; i < program_.tail;) {
      int32_t taken = feed_forward(i);
      if (taken == 0) taken = products(i);
      if (taken == 0) {
        execute(backend_, program_, prepared_, i, place_);
        taken = 1;
      }
      i += taken;
    }
  }

 private:
  const moela_op* op(int32_t i) const { return i < program_.tail ? &program_.ops[i] : nullptr; }
  bool is(int32_t i, int32_t kind) const { return op(i) && op(i)->kind == kind; }
  float* f32(int32_t id) const {
    return id < 0 ? nullptr
                  : reinterpret_cast<float*>(backend_.model.workspace->data() +
                                             program_.values[id].offset);
  }
  const Weight& weight(const moela_op& op, int i) const { return backend_.weights[op.weight[i]]; }

  // A norm of whole rows whose result is read `times` and never kept.
  bool norm_for(int32_t i, int32_t times) const {
    return is(i, MOELA_OP_RMS_NORM) && op(i)->n[0] == op(i)->n[1] &&
           readers_[op(i)->out[0]] == times && !program_.values[op(i)->out[0]].value.keep;
  }
  DecodeInput normed(const moela_op& norm) const {
    return {{f32(norm.in[0]), MOELA_F32}, &weight(norm, 0), norm.f[0]};
  }
  DecodeLinear product(const moela_op& op) const {
    return {weight(op, 0), f32(op.in[1]), f32(op.out[0])};
  }

  // RMS_NORM and the products that alone read it, or one product.
  int32_t products(int32_t begin) {
    DecodeLinear list[MOST_PRODUCTS];
    int32_t count = 0;
    const bool norms = is(begin, MOELA_OP_RMS_NORM);
    const int32_t first = begin + (norms ? 1 : 0);
    if (!is(first, MOELA_OP_LINEAR)) return 0;
    const int32_t x = op(first)->in[0];
    if (norms && op(begin)->out[0] != x) return 0;
    for (int32_t i = first; is(i, MOELA_OP_LINEAR) && op(i)->in[0] == x && count < MOST_PRODUCTS;
         i++) {
      if (prepared_.dtypes[op(i)->out[0]] != MOELA_F32) break;
      list[count++] = product(*op(i));
    }
    if (count == 0 || (norms && !norm_for(begin, count))) return 0;
    if (!decode_linear_fits(launch_, list, count)) return 0;
    const void* in = f32(x);
    const DecodeInput input =
        norms ? normed(*op(begin))
              : DecodeInput{{const_cast<void*>(in), prepared_.dtypes[x]}, nullptr, 0};
    decode_linear(launch_, MOELA_ROWS_ALL, input, list, count);
    return first + count - begin;
  }

  int32_t feed_forward(int32_t begin) {
    if (!is(begin, MOELA_OP_RMS_NORM)) return 0;
    return is(begin + 1, MOELA_OP_GATE_UP) ? dense(begin) : mixture(begin);
  }

  // RMS_NORM, GATE_UP, LINEAR with residual.
  int32_t dense(int32_t begin) {
    const int32_t x = op(begin)->out[0];
    if (!norm_for(begin, 1) || !is(begin + 2, MOELA_OP_LINEAR)) return 0;
    const moela_op &up = *op(begin + 1), &down = *op(begin + 2);
    if (up.in[0] != x || up.in[1] != -1 || down.in[0] != up.out[0] || down.in[1] < 0) return 0;
    if (readers_[up.out[0]] != 1) return 0;
    DecodeExperts experts{};
    rooms_ = 0;
    shared(experts, up, down);
    if (!decode_experts_fits(launch_, experts)) return 0;
    decode_gate_up(launch_, normed(*op(begin)), experts);
    decode_down(launch_, experts, f32(down.in[1]), f32(down.out[0]));
    return 3;
  }

  void shared(DecodeExperts& experts, const moela_op& up, const moela_op& down) {
    experts.shared_gate = weight(up, 0);
    experts.shared_up = weight(up, 1);
    experts.shared_down = weight(down, 0);
    experts.shared = room(up.n[0]);
  }

  // RMS_NORM, LINEAR, ROUTER, MOE_PLAN, GATE_UP, EXPERT_DOWN, (GATE_UP, LINEAR,) COMBINE.
  int32_t mixture(int32_t begin) {
    int32_t i = begin + 1;
    const int32_t x = op(begin)->out[0];
    if (!is(i, MOELA_OP_LINEAR) || !is(i + 1, MOELA_OP_ROUTER) || !is(i + 2, MOELA_OP_MOE_PLAN) ||
        !is(i + 3, MOELA_OP_GATE_UP) || !is(i + 4, MOELA_OP_EXPERT_DOWN)) {
      return 0;
    }
    const moela_op &logits = *op(i), &route = *op(i + 1), &plan = *op(i + 2), &up = *op(i + 3),
                   &down = *op(i + 4);
    i += 5;
    const bool has_shared = is(i, MOELA_OP_GATE_UP) && is(i + 1, MOELA_OP_LINEAR);
    const int32_t shared_at = i;
    if (has_shared) i += 2;
    if (!is(i, MOELA_OP_COMBINE)) return 0;
    const moela_op& sum = *op(i);
    bool fits = norm_for(begin, has_shared ? 3 : 2) && logits.in[0] == x && logits.in[1] < 0 &&
                route.in[0] == logits.out[0] && plan.in[0] == route.out[0] && up.in[0] == x &&
                up.in[1] == plan.out[0] && down.in[0] == up.out[0] && down.in[1] == plan.out[0] &&
                sum.in[0] == down.out[0] && sum.in[1] == route.out[1] && up.n[2] == route.n[1] &&
                down.n[2] == route.n[1] && sum.n[1] == route.n[1];
    const auto alone = [&](int32_t id, int32_t times) {
      return readers_[id] == times && !program_.values[id].value.keep;
    };
    fits = fits && alone(logits.out[0], 1) && alone(route.out[0], 1) && alone(route.out[1], 1) &&
           alone(plan.out[0], 2) && alone(up.out[0], 1) && alone(down.out[0], 1);
    DecodeExperts experts{};
    rooms_ = 0;
    if (has_shared) {
      const moela_op &shared_up = *op(shared_at), &shared_down = *op(shared_at + 1);
      fits = fits && shared_up.in[0] == x && shared_up.in[1] == -1 &&
             shared_down.in[0] == shared_up.out[0] && shared_down.in[1] < 0 &&
             sum.in[2] == shared_down.out[0] && alone(shared_up.out[0], 1) &&
             alone(shared_down.out[0], 1);
      if (fits) shared(experts, shared_up, shared_down);
    } else {
      fits = fits && sum.in[2] < 0;
    }
    if (!fits) return 0;
    const int32_t* n = route.n;
    experts.shape = {n[0], n[1], n[2], n[3], n[4], n[5], n[6] != 0, route.f[0]};
    float* scores = room(n[0]);
    experts.logits = scores;
    experts.bias = route.weight[0] < 0 ? nullptr : &weight(route, 0);
    experts.gate = weight(up, 0);
    experts.up = weight(up, 1);
    experts.down = weight(down, 0);
    experts.routed = room(int64_t{n[1]} * up.n[0]);
    if (!decode_router_fits(launch_, weight(logits, 0)) || !decode_experts_fits(launch_, experts)) {
      return 0;
    }
    const DecodeInput input = normed(*op(begin));
    decode_router(launch_, input, weight(logits, 0), scores);
    decode_gate_up(launch_, input, experts);
    decode_down(launch_, experts, f32(sum.in[3]), f32(sum.out[0]));
    return i + 1 - begin;
  }

  // Memory of the pattern at hand, apart from the workspace: its values are planned for operations
  // that run one after another.
  float* room(int64_t floats) {
    const uint64_t begin = rooms_;
    rooms_ += (floats * 4 + 255) / 256 * 256;
    return reinterpret_cast<float*>(backend_.fused.data() + begin);
  }

  CudaBackend& backend_;
  const Program& program_;
  const Prepared& prepared_;
  const Place& place_;
  Launch launch_;
  std::vector<int32_t> readers_;
  uint64_t rooms_ = 0;
};

}  // namespace

// The most that a pattern asks for: logits, and the halves of routed and shared experts.
uint64_t fused_bytes(const Program& program) {
  uint64_t most = 0;
  for (const moela_op& op : program.ops) {
    if (op.kind == MOELA_OP_GATE_UP) most = std::max<uint64_t>(most, int64_t{op.n[2]} * op.n[0]);
    if (op.kind == MOELA_OP_ROUTER) most = std::max<uint64_t>(most, op.n[0]);
  }
  return 3 * (most * 4 + 256);
}

void execute_fused(CudaBackend& backend, const Program& program, const Prepared& prepared,
                   const Place& place) {
  Fuser(backend, program, prepared, place).run();
}

}  // namespace moela::cuda
