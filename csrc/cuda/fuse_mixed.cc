#include "cuda/fuse_mixed.h"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/wgmma.h"

namespace moela::cuda {
namespace {

// Below so many rows two matrices of the same rows keep the multiprocessors busy only together.
constexpr int32_t PAIR_ROWS = 1536;

bool by_wgmma(const Program& program, const std::vector<Weight>& weights, bool hopper,
              int32_t index) {
  if (index < 0 || index >= program.tail) return false;
  const moela_op& op = program.ops[index];
  Launch at{};
  at.hopper = hopper;
  return op.kind == MOELA_OP_LINEAR && op.rows == MOELA_ROWS_ALL &&
         wgmma_takes(at, weights[op.weight[0]]);
}

// Two products of the same rows, of which nobody waits for the first.
bool are_pair(const Program& program, int32_t index) {
  const moela_op &one = program.ops[index], &other = program.ops[index + 1];
  // A residual's memory may be the other's output already.
  return one.in[0] == other.in[0] && one.in[1] < 0 && other.in[1] < 0;
}

struct Products {
  CudaBackend& backend;
  const Program& program;
  const Prepared& prepared;
  const Place& place;

  char* at(int32_t id) const { return backend.model.workspace->data() + program.values[id].offset; }
  Tensor tensor(int32_t id) const { return {at(id), prepared.dtypes[id]}; }
  Tensor input(const moela_op& op) const { return product_input(backend, program, prepared, op); }

  WgmmaLinear part(int32_t index, int32_t rotary) const {
    const moela_op& op = program.ops[index];
    WgmmaLinear part{&backend.weights[op.weight[0]],
                     op.in[1] < 0 ? nullptr : reinterpret_cast<const float*>(at(op.in[1])),
                     tensor(op.out[0]),
                     {}};
    if (rotary >= 0) {
      const moela_op& turn = program.ops[rotary];
      part.rotation = {reinterpret_cast<const float*>(at(turn.in[1])), turn.n[1], turn.n[2],
                       turn.n[3]};
    }
    return part;
  }

  // The rows on the absorbed path, for which the operations are launched one by one.
  void absorbed(const Launch& launch, int32_t begin, int32_t end) const {
    for (int32_t i = begin; i < end; i++) {
      const moela_op& op = program.ops[i];
      float* out = reinterpret_cast<float*>(at(op.out[0]));
      if (op.kind == MOELA_OP_ROTARY) {
        rotary(launch, MOELA_ROWS_ABSORBED, op.n[0], op.n[1], op.n[2], op.n[3],
               reinterpret_cast<const float*>(at(op.in[1])), out);
      } else {
        const WgmmaLinear p = part(i, -1);
        linear(launch, MOELA_ROWS_ABSORBED, op.n[0], op.n[1], input(op), *p.weight, p.residual,
               absorbed_rows(p.out));
      }
    }
  }
};

// GATE_UP and EXPERT_DOWN with a plan, then GATE_UP and LINEAR without one of the same input: two
// launches for projected rows alone. The planner keeps what the first two read until the end.
int32_t experts(CudaBackend& backend, const Program& program, const Prepared& prepared,
                int32_t index, const Place& place) {
  if (!place.launch.hopper || place.launch.absorbed > 0 || index + 4 > program.tail) return 0;
  const moela_op* op = &program.ops[index];
  const moela_op &up = op[0], &down = op[1], &shared_up = op[2], &shared_down = op[3];
  if (up.kind != MOELA_OP_GATE_UP || down.kind != MOELA_OP_EXPERT_DOWN ||
      shared_up.kind != MOELA_OP_GATE_UP || shared_down.kind != MOELA_OP_LINEAR) {
    return 0;
  }
  for (int i = 0; i < 4; i++) {
    if (op[i].rows != MOELA_ROWS_ALL) return 0;
  }
  if (up.in[1] < 0 || down.in[0] != up.out[0] || down.in[1] != up.in[1] ||
      shared_up.in[0] != up.in[0] || shared_up.in[1] >= 0 ||
      shared_down.in[0] != shared_up.out[0] || shared_down.in[1] >= 0) {
    return 0;
  }
  Launch at = place.launch;
  at.bucket = place.rows;
  const auto weight = [&](const moela_op& of, int i) -> const Weight& {
    return backend.weights[of.weight[i]];
  };
  if (!wgmma_takes(at, weight(up, 0), weight(up, 1)) || !wgmma_takes(at, weight(down, 0)) ||
      !wgmma_takes(at, weight(shared_up, 0), weight(shared_up, 1)) ||
      !wgmma_takes(at, weight(shared_down, 0))) {
    return 0;
  }
  const Products products{backend, program, prepared, place};
  const Tensor x = products.input(up), hidden = products.input(down),
               shared_hidden = products.input(shared_down);
  if (hidden.dtype != shared_hidden.dtype) return 0;
  const int32_t* plan = reinterpret_cast<const int32_t*>(products.at(up.in[1]));
  const WgmmaGated gated[2] = {
      {&weight(up, 0), &weight(up, 1), products.tensor(up.out[0])},
      {&weight(shared_up, 0), &weight(shared_up, 1), products.tensor(shared_up.out[0])}};
  gate_up_wgmma(at, up.n[1], up.n[2], up.n[3], x, plan, gated, 2);
  const WgmmaDown downs[2] = {
      {&weight(down, 0), hidden, products.tensor(down.out[0])},
      {&weight(shared_down, 0), shared_hidden, products.tensor(shared_down.out[0])}};
  expert_down_wgmma(at, down.n[2], down.n[3], plan, downs, 2);
  return 4;
}

}  // namespace

bool rotates_product(const Program& program, const std::vector<Weight>& weights, bool hopper,
                     int32_t index, int32_t& product) {
  if (index >= program.tail) return false;
  const moela_op& op = program.ops[index];
  if (op.kind != MOELA_OP_ROTARY || op.rows != MOELA_ROWS_ALL) return false;
  if (op.n[1] % 8 != 0 || op.n[2] % 8 != 0 || op.n[3] % 8 != 0) return false;
  for (product = index - 1; product >= std::max(0, index - 2); product--) {
    if (!by_wgmma(program, weights, hopper, product)) return false;
    if (program.ops[product].out[0] != op.out[0]) continue;
    if (program.ops[product].in[1] >= 0) return false;
    return product == index - 1 || are_pair(program, product);
  }
  return false;
}

int32_t execute_mixed(CudaBackend& backend, const Program& program, const Prepared& prepared,
                      int32_t index, const Place& place) {
  const bool hopper = place.launch.hopper && place.launch.absorbed < place.rows;
  const auto alone = [&] {
    execute(backend, program, prepared, index, place);
    return 1;
  };
  if (const int32_t taken = experts(backend, program, prepared, index, place)) return taken;
  if (!by_wgmma(program, backend.weights, hopper, index)) return alone();
  int32_t count = 1;
  if (by_wgmma(program, backend.weights, hopper, index + 1) && are_pair(program, index)) count = 2;
  int32_t turned = -1;
  // The second of them is to be rotated with the one that follows.
  if (count == 2 && rotates_product(program, backend.weights, hopper, index + 3, turned) &&
      turned == index + 1) {
    count = 1;
  }
  const bool rotates =
      rotates_product(program, backend.weights, hopper, index + count, turned) && turned >= index;
  if (count == 1 && !rotates) return alone();
  Launch at = place.launch;
  at.bucket = place.rows;
  at.scratch = backend.scratch.data();
  at.scratch_bytes = static_cast<int64_t>(backend.scratch.grown());
  const Products products{backend, program, prepared, place};
  const int32_t end = index + count + (rotates ? 1 : 0);
  if (at.absorbed > 0) products.absorbed(at, index, end);
  WgmmaLinear parts[2];
  for (int32_t i = 0; i < count; i++) {
    parts[i] = products.part(index + i, rotates && turned == index + i ? index + count : -1);
  }
  const moela_op& op = program.ops[index];
  const bool together = count == 2 && place.rows - at.absorbed < PAIR_ROWS;
  for (int32_t i = 0; i < count; i += together ? 2 : 1) {
    linear_wgmma(at, op.n[1], products.input(op), parts + i, together ? 2 : 1);
  }
  return end - index;
}

}  // namespace moela::cuda
