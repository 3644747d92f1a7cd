#include "cuda/persistent_plan.h"

#include <algorithm>

namespace moela::cuda {
namespace {

// Reads a program from its first operation on, as src/model/layers.ts writes one whose queries have
// no low rank.
class Reader {
 public:
  Reader(CudaBackend& backend, const Program& program) : backend_(backend), program_(program) {
    readers_.resize(program.values.size());
    for (const moela_op& op : program.ops) {
      for (int32_t id : op.in) {
        if (id >= 0) readers_[id]++;
      }
    }
  }

  bool read(PersistentStep& step, std::vector<PersistentLayer>& layers) {
    const moela_op* rope = take(MOELA_OP_ROPE_TABLE);
    const moela_op* embedding = rope ? take(MOELA_OP_EMBED) : nullptr;
    if (!embedding || rope->n[0] != 64) return false;
    const Weight& table = weight(*embedding, 0);
    if (table.dtype != MOELA_F32 && table.dtype != MOELA_BF16) return false;
    step.d = embedding->n[0];
    step.embedding = table.data;
    step.embedding_dtype = table.dtype;
    step.frequencies = reinterpret_cast<const double*>(weight(*rope, 0).data);
    step.rope_factor = rope->f[0];
    rope_ = rope->out[0];
    hidden_ = embedding->out[0];
    while (at_ < program_.tail) {
      PersistentLayer layer{};
      if (!attention(step, layer, static_cast<int32_t>(layers.size())) ||
          !(dense(step, layer) || mixture(step, layer))) {
        return false;
      }
      step.n_routed += layer.router != nullptr;
      int64_t& most = layer.router ? step.shared : step.dense;
      most = std::max(most, layer.shared);
      layers.push_back(layer);
    }
    step.n_layers = static_cast<int32_t>(layers.size());
    step.out = reinterpret_cast<float*>(backend_.model.workspace->data() +
                                        program_.values[hidden_].offset);
    return step.n_layers > 0;
  }

 private:
  const moela_op* next(int32_t kind, int32_t after = 0) const {
    const int32_t at = at_ + after;
    return at < program_.tail && program_.ops[at].kind == kind ? &program_.ops[at] : nullptr;
  }
  const moela_op* take(int32_t kind) {
    const moela_op* op = next(kind);
    if (op) at_++;
    return op;
  }
  const Weight& weight(const moela_op& op, int i) const { return backend_.weights[op.weight[i]]; }
  bool read_times(int32_t id, int32_t times) const {
    return readers_[id] == times && !program_.values[id].value.keep;
  }

  bool norm(const moela_op& op, PersistentNorm& to) const {
    const Weight& w = weight(op, 0);
    to = {w.data, w.dtype, op.f[0]};
    return op.n[0] == op.n[1] && (w.dtype == MOELA_F32 || w.dtype == MOELA_BF16);
  }
  // A matrix of the one type that all have.
  bool matrix(const Weight& w, int64_t rows, int64_t cols, PersistentStep& step,
              PersistentMatrix& to) const {
    if (step.dtype < 0) step.dtype = w.dtype;
    return matrix_of(step.dtype, w, rows, cols, to);
  }
  bool matrix_of(int32_t dtype, const Weight& w, int64_t rows, int64_t cols,
                 PersistentMatrix& to) const {
    to = {w.data, w.scales};
    return w.dtype == dtype && dtype != MOELA_F32 && w.rows == rows && w.cols == cols;
  }

  bool attention(PersistentStep& step, PersistentLayer& layer, int32_t index) {
    const moela_op* normed = take(MOELA_OP_RMS_NORM);
    const moela_op* q = normed ? take(MOELA_OP_LINEAR) : nullptr;
    const moela_op* kv_a = q ? take(MOELA_OP_LINEAR) : nullptr;
    const moela_op* rotary = kv_a ? take(MOELA_OP_ROTARY) : nullptr;
    const moela_op* write = rotary ? take(MOELA_OP_CACHE_WRITE) : nullptr;
    const moela_op* absorb = write ? take(MOELA_OP_MLA_ABSORB) : nullptr;
    const moela_op* decode = absorb ? take(MOELA_OP_MLA_DECODE) : nullptr;
    const moela_op* expand = decode ? take(MOELA_OP_MLA_EXPAND) : nullptr;
    const moela_op* output = expand ? take(MOELA_OP_LINEAR) : nullptr;
    if (!output) return false;
    const int32_t x = normed->out[0], heads = absorb->n[0];
    const bool flows = normed->in[0] == hidden_ && q->in[0] == x && q->in[1] < 0 &&
                       kv_a->in[0] == x && kv_a->in[1] < 0 && rotary->out[0] == q->out[0] &&
                       rotary->in[1] == rope_ && write->in[0] == kv_a->out[0] &&
                       write->in[1] == rope_ && absorb->in[0] == q->out[0] &&
                       decode->in[0] == absorb->out[0] && expand->in[0] == decode->out[0] &&
                       output->in[0] == expand->out[0] && output->in[1] == hidden_ &&
                       read_times(x, 2) && read_times(expand->out[0], 1);
    const bool shapes = absorb->n[1] == 128 && absorb->n[2] == 64 && absorb->n[3] == 128 &&
                        absorb->n[4] == 512 && rotary->n[0] == heads && rotary->n[1] == 192 &&
                        rotary->n[2] == 128 && rotary->n[3] == 64 && write->n[0] == index &&
                        decode->n[0] == index && write->n[1] == 512 && write->n[2] == 64;
    if (!flows || !shapes) return false;
    const Weight& kv_b = weight(*absorb, 0);
    const Weight& latent = weight(*write, 0);
    if (step.heads == 0) {
      step.heads = heads;
      step.kv_a_dtype = weight(*kv_a, 0).dtype;
      step.kv_b_dtype = kv_b.dtype;
      step.scale = absorb->f[0];
    }
    layer.kv_b = {kv_b.data, kv_b.scales};
    layer.latent_norm = {latent.data, latent.dtype, write->f[0]};
    hidden_ = output->out[0];
    return heads == step.heads && kv_b.dtype == step.kv_b_dtype && kv_b.dtype != MOELA_F32 &&
           kv_b.data == weight(*expand, 0).data && absorb->f[0] == step.scale &&
           (latent.dtype == MOELA_F32 || latent.dtype == MOELA_BF16) &&
           norm(*normed, layer.input_norm) &&
           matrix(weight(*q, 0), heads * int64_t{192}, step.d, step, layer.q) &&
           matrix_of(step.kv_a_dtype, weight(*kv_a, 0), 576, step.d, layer.kv_a) &&
           matrix(weight(*output, 0), step.d, heads * int64_t{128}, step, layer.o);
  }

  // A block that all rows take: RMS_NORM's result x through GATE_UP and LINEAR.
  bool shared(PersistentStep& step, PersistentLayer& layer, const moela_op& up,
              const moela_op& down, int32_t x) const {
    layer.shared = weight(up, 0).rows;
    return up.in[0] == x && up.in[1] < 0 && down.in[0] == up.out[0] && read_times(up.out[0], 1) &&
           matrix(weight(up, 0), layer.shared, step.d, step, layer.shared_gate) &&
           matrix(weight(up, 1), layer.shared, step.d, step, layer.shared_up) &&
           matrix(weight(down, 0), step.d, layer.shared, step, layer.shared_down);
  }

  bool dense(PersistentStep& step, PersistentLayer& layer) {
    const moela_op* normed = next(MOELA_OP_RMS_NORM);
    const moela_op* up = next(MOELA_OP_GATE_UP, 1);
    const moela_op* down = next(MOELA_OP_LINEAR, 2);
    if (!normed || !up || !down) return false;
    if (normed->in[0] != hidden_ || down->in[1] != hidden_ || !read_times(normed->out[0], 1) ||
        !norm(*normed, layer.post_norm) || !shared(step, layer, *up, *down, normed->out[0])) {
      return false;
    }
    at_ += 3;
    hidden_ = down->out[0];
    return true;
  }

  bool mixture(PersistentStep& step, PersistentLayer& layer) {
    const moela_op* normed = take(MOELA_OP_RMS_NORM);
    const moela_op* logits = normed ? take(MOELA_OP_LINEAR) : nullptr;
    const moela_op* route = logits ? take(MOELA_OP_ROUTER) : nullptr;
    const moela_op* plan = route ? take(MOELA_OP_MOE_PLAN) : nullptr;
    const moela_op* up = plan ? take(MOELA_OP_GATE_UP) : nullptr;
    const moela_op* down = up ? take(MOELA_OP_EXPERT_DOWN) : nullptr;
    if (!down) return false;
    const int32_t x = normed->out[0];
    const moela_op* shared_up = take(MOELA_OP_GATE_UP);
    const moela_op* shared_down = shared_up ? take(MOELA_OP_LINEAR) : nullptr;
    const moela_op* sum = take(MOELA_OP_COMBINE);
    if (!sum || (shared_up && !shared_down)) return false;
    const Weight& router = weight(*logits, 0);
    const Weight &gate = weight(*up, 0), &up_weight = weight(*up, 1),
                 &down_weight = weight(*down, 0);
    const int32_t* n = route->n;
    const RouterShape shape = {n[0], n[1], n[2], n[3], n[4], n[5], n[6] != 0, route->f[0]};
    const int32_t inner = static_cast<int32_t>(gate.rows);
    if (step.n_routed == 0) {
      step.shape = shape;
      step.intermediate = inner;
      step.gate_part = gate.part_bytes;
      step.gate_scale_part = gate.scale_part_bytes;
      step.down_part = down_weight.part_bytes;
      step.down_scale_part = down_weight.scale_part_bytes;
    }
    const RouterShape& s = step.shape;
    const bool same = shape.experts == s.experts && shape.top_k == s.top_k &&
                      shape.n_group == s.n_group && shape.topk_group == s.topk_group &&
                      shape.scoring == s.scoring && shape.group_score == s.group_score &&
                      shape.normalise == s.normalise && shape.factor == s.factor &&
                      inner == step.intermediate && gate.part_bytes == step.gate_part &&
                      up_weight.part_bytes == step.gate_part &&
                      gate.scale_part_bytes == step.gate_scale_part &&
                      up_weight.scale_part_bytes == step.gate_scale_part &&
                      down_weight.part_bytes == step.down_part &&
                      down_weight.scale_part_bytes == step.down_scale_part;
    const bool flows =
        normed->in[0] == hidden_ && logits->in[0] == x && logits->in[1] < 0 &&
        route->in[0] == logits->out[0] && plan->in[0] == route->out[0] && up->in[0] == x &&
        up->in[1] == plan->out[0] && down->in[0] == up->out[0] && down->in[1] == plan->out[0] &&
        sum->in[0] == down->out[0] && sum->in[1] == route->out[1] && sum->in[3] == hidden_ &&
        sum->in[2] == (shared_down ? shared_down->out[0] : -1) &&
        read_times(x, shared_up ? 3 : 2) && read_times(logits->out[0], 1) &&
        read_times(route->out[0], 1) && read_times(route->out[1], 1) &&
        read_times(plan->out[0], 2) && read_times(up->out[0], 1) && read_times(down->out[0], 1);
    const Weight* bias = route->weight[0] < 0 ? nullptr : &weight(*route, 0);
    if (!same || !flows || router.dtype != MOELA_F32 || (bias && bias->dtype != MOELA_F32)) {
      return false;
    }
    layer.router = reinterpret_cast<const float*>(router.data);
    layer.bias = bias ? reinterpret_cast<const float*>(bias->data) : nullptr;
    hidden_ = sum->out[0];
    return norm(*normed, layer.post_norm) && gate.count == shape.experts &&
           matrix(gate, inner, step.d, step, layer.gate) &&
           matrix(up_weight, inner, step.d, step, layer.up) &&
           matrix(down_weight, step.d, inner, step, layer.down) &&
           (!shared_up || (shared_down->in[1] < 0 && read_times(shared_down->out[0], 1) &&
                           shared(step, layer, *shared_up, *shared_down, x)));
  }

  CudaBackend& backend_;
  const Program& program_;
  std::vector<int32_t> readers_;
  int32_t at_ = 0, rope_ = -1, hidden_ = -1;
};

}  // namespace

std::unique_ptr<PersistentPlan> plan_persistent(CudaBackend& backend, const Program& program,
                                                const Place& place) {
  auto plan = std::make_unique<PersistentPlan>();
  PersistentStep& step = plan->step;
  step = {};
  step.dtype = -1;
  std::vector<PersistentLayer> layers;
  Launch launch = place.launch;
  launch.bucket = 1;
  if (!Reader(backend, program).read(step, layers) || !persistent_fits(launch, step)) {
    return nullptr;
  }
  const uint64_t bytes = layers.size() * sizeof(PersistentLayer);
  const int index = backend.device.index;
  plan->layers = std::make_unique<CudaMemory>(index, bytes, "the layers' list");
  backend.device.copy_in(plan->layers->data(), layers.data(), bytes);
  step.layers = reinterpret_cast<const PersistentLayer*>(plan->layers->data());
  const int64_t scratch = persistent_bytes(step);
  plan->scratch = std::make_unique<CudaMemory>(index, scratch, "scratch memory of a step");
  return plan;
}

}  // namespace moela::cuda
