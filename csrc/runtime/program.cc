// Checks a recorded program against the shapes of its values and weights, and plans its workspace.
#include "runtime/program.h"

#include <algorithm>

#include "cpu/formats.h"
#include "runtime/error.h"

namespace moela {
namespace {

constexpr int64_t ALIGNMENT = 64;
constexpr int32_t MAX_ROWS = 65536;
// Far beyond any model, and small enough that no sum of sizes overflows.
constexpr int32_t MAX_ENTRIES = 65536;
constexpr int64_t MAX_WORKSPACE = int64_t{1} << 46;
constexpr int64_t MAX_LAYERS = 4096;

// Reads one operation's operands and says what is wrong with them.
class Checker {
 public:
  Checker(const std::vector<PlannedValue>& values, const std::vector<const Weight*>& weights,
          const moela_op& op, int32_t index)
      : values_(values), weights_(weights), op_(op), index_(index) {}

  [[noreturn]] void fail(const char* what) const {
    throw Error(MOELA_ERR_ARGUMENT, format("operation %d (kind %d): %s", index_, op_.kind, what));
  }
  void need(bool condition, const char* what) const {
    if (!condition) fail(what);
  }
  // n[i], a dimension.
  int64_t n(int i) const {
    need(op_.n[i] > 0, "a dimension is not positive");
    return op_.n[i];
  }
  // n[i], a number that may be 0.
  int64_t count(int i) const {
    need(op_.n[i] >= 0, "a number is negative");
    return op_.n[i];
  }
  void value(int32_t id, int64_t cols, int32_t dtype = MOELA_F32, int64_t extra = 0) const {
    need(id >= 0 && id < static_cast<int32_t>(values_.size()), "a value does not exist");
    const moela_value& value = values_[id].value;
    need(value.dtype == dtype, "a value has the wrong type");
    need(value.cols >= cols && value.extra >= extra, "a value is too narrow");
    // Logits rows live in values of their own; only GATHER reads across.
    const bool logits = op_.rows == MOELA_ROWS_LOGITS;
    need((value.rows == MOELA_ROWS_LOGITS) == logits ||
             (op_.kind == MOELA_OP_GATHER && id == op_.in[0]),
         "a value belongs to other rows");
    // Rows lie cols apart, so the width must be exact.
    need(value.cols == cols, "a value is too wide");
  }
  void in(int i, int64_t cols, int32_t dtype = MOELA_F32, int64_t extra = 0) const {
    value(op_.in[i], cols, dtype, extra);
  }
  void maybe_in(int i, int64_t cols) const {
    if (op_.in[i] != -1) value(op_.in[i], cols);
  }
  void out(int i, int64_t cols, int32_t dtype = MOELA_F32, int64_t extra = 0) const {
    value(op_.out[i], cols, dtype, extra);
  }
  const Weight& weight(int i, int64_t parts, int64_t rows, int64_t cols) const {
    const int32_t id = op_.weight[i];
    need(id >= 0 && id < static_cast<int32_t>(weights_.size()), "a weight does not exist");
    const Weight& weight = *weights_[id];
    need(static_cast<int64_t>(weight.parts.size()) == parts, "a weight has other parts");
    need((rows < 0 || weight.rows == rows) && weight.cols == cols, "a weight has another shape");
    return weight;
  }
  void floating(const Weight& weight) const {
    need(weight.dtype == MOELA_F32 || weight.dtype == MOELA_BF16, "a weight is not f32 or bf16");
  }
  void vector(int i, int64_t cols) const { floating(weight(i, 1, 1, cols)); }
  void matrix(int i, int64_t parts, int64_t rows, int64_t cols) const {
    const Weight& matrix = weight(i, parts, rows, cols);
    if (!weight_has_scales(matrix.dtype)) floating(matrix);
  }
  // kv_b_proj, which is also read by columns.
  void kv_b(int i, int64_t rows, int64_t cols) const {
    matrix(i, 1, rows, cols);
    need(weights_[op_.weight[i]]->dtype != MOELA_INT4, "kv_b_proj is int4");
  }
  // Every id names something or is -1, also those that the kind has no use for.
  void operands() const {
    const auto exists = [&](int32_t id, size_t count) {
      need(id >= -1 && id < static_cast<int64_t>(count), "an operand does not exist");
    };
    for (int32_t id : op_.in) exists(id, values_.size());
    for (int32_t id : op_.out) exists(id, values_.size());
    for (int32_t id : op_.weight) exists(id, weights_.size());
  }
  // in[1], a plan. Its slots are used as indices, so it comes from a MOE_PLAN over the same rows,
  // experts and k.
  void plan(int64_t experts, int64_t k, const std::vector<moela_op>& ops) const {
    in(1, k, MOELA_I32, experts + 1);
    const int32_t by = values_[op_.in[1]].producer;
    need(by >= 0 && ops[by].kind == MOELA_OP_MOE_PLAN, "the plan must come from MOE_PLAN");
    need(ops[by].rows == op_.rows && ops[by].n[0] == experts,
         "the plan is of other rows or experts");
  }

 private:
  const std::vector<PlannedValue>& values_;
  const std::vector<const Weight*>& weights_;
  const moela_op& op_;
  int32_t index_;
};

void touches_cache(Program& program, const Checker& c, int64_t layer, int64_t r, int64_t dr) {
  c.need(program.kv_lora_rank == 0 || (program.kv_lora_rank == r && program.qk_rope_head_dim == dr),
         "cache operations disagree about its width");
  c.need(layer < MAX_LAYERS, "a layer is out of range");
  program.kv_lora_rank = r;
  program.qk_rope_head_dim = dr;
  program.layers = std::max(program.layers, static_cast<int32_t>(layer) + 1);
}

void vocabulary(Program& program, const Checker& c, int64_t vocab) {
  c.need(program.vocab_out == 0 || program.vocab_out == vocab, "logits of two widths");
  program.vocab_out = vocab;
}

// Absorbed and projected rows of one value have operations of their own.
bool shared_output(int32_t kind) {
  return kind == MOELA_OP_MLA_EXPAND || kind == MOELA_OP_MLA_PREFILL;
}

void check_op(Program& program, const moela_op& op, int32_t index,
              const std::vector<const Weight*>& weights) {
  const Checker c(program.values, weights, op, index);
  c.need(op.rows >= MOELA_ROWS_ALL && op.rows <= MOELA_ROWS_LOGITS, "no such rows");
  c.operands();
  // Operations read and write at the same time, so they have places of their own.
  const bool in_place = op.kind == MOELA_OP_ROTARY;
  for (int32_t out : op.out) {
    for (int32_t in : op.in) {
      c.need(out < 0 || out != in || in_place, "writes to a value that it reads");
    }
    c.need(out < 0 || in_place || program.values[out].producer == -1 || shared_output(op.kind),
           "writes to a value that another operation has written");
  }
  const auto only = [&](int32_t rows, const char* what) { c.need(op.rows == rows, what); };
  switch (op.kind) {
    case MOELA_OP_EMBED: {
      only(MOELA_ROWS_ALL, "embeds all rows");
      const int64_t d = c.n(0);
      const Weight& table = c.weight(0, 1, -1, d);
      c.floating(table);
      c.out(0, d);
      program.vocab_in = std::min(program.vocab_in, table.rows);
      break;
    }
    case MOELA_OP_RMS_NORM:
      c.need(c.n(1) >= c.n(0), "rows overlap");
      c.in(0, c.n(1));
      c.out(0, c.n(0));
      c.vector(0, c.n(0));
      break;
    case MOELA_OP_LINEAR:
      c.in(0, c.n(1));
      c.maybe_in(1, c.n(0));
      c.out(0, c.n(0));
      c.matrix(0, 1, c.n(0), c.n(1));
      break;
    case MOELA_OP_ROPE_TABLE:
      only(MOELA_ROWS_ALL, "positions belong to all rows");
      c.need(c.n(0) % 2 == 0, "rotary dimension is odd");
      c.out(0, c.n(0));
      c.need(c.weight(0, 1, 1, c.n(0) / 2).dtype == MOELA_F64, "inverse frequencies are f64");
      break;
    case MOELA_OP_ROTARY:
      c.need(c.n(3) % 2 == 0 && c.count(2) + c.n(3) <= c.n(1), "rotates beyond the head");
      c.in(0, c.n(0) * c.n(1));
      c.in(1, c.n(3));
      c.need(op.out[0] == op.in[0], "rotary works in place");
      break;
    case MOELA_OP_CACHE_WRITE:
      c.need(c.n(2) % 2 == 0, "rotary dimension is odd");
      c.in(0, c.n(1) + c.n(2));
      c.in(1, c.n(2));
      c.vector(0, c.n(1));
      touches_cache(program, c, c.count(0), c.n(1), c.n(2));
      break;
    case MOELA_OP_MLA_ABSORB:
    case MOELA_OP_MLA_EXPAND: {
      only(MOELA_ROWS_ABSORBED, "belongs to the absorbed rows");
      const int64_t heads = c.n(0), dn = c.n(1), dr = c.n(2), dv = c.n(3), r = c.n(4);
      const bool absorb = op.kind == MOELA_OP_MLA_ABSORB;
      c.in(0, absorb ? heads * (dn + dr) : heads * r);
      c.out(0, absorb ? heads * (r + dr) : heads * dv);
      c.kv_b(0, heads * (dn + dv), r);
      break;
    }
    case MOELA_OP_MLA_DECODE:
      only(MOELA_ROWS_ABSORBED, "belongs to the absorbed rows");
      c.in(0, c.n(1) * (c.n(2) + c.n(3)));
      c.out(0, c.n(1) * c.n(2));
      touches_cache(program, c, c.count(0), c.n(2), c.n(3));
      break;
    case MOELA_OP_MLA_PREFILL: {
      only(MOELA_ROWS_PROJECTED, "belongs to the projected rows");
      const int64_t heads = c.n(1), dn = c.n(2), dr = c.n(3), dv = c.n(4), r = c.n(5);
      c.in(0, heads * (dn + dr));
      c.out(0, heads * dv);
      c.kv_b(0, heads * (dn + dv), r);
      touches_cache(program, c, c.count(0), r, dr);
      program.has_projected = true;
      break;
    }
    case MOELA_OP_ROUTER: {
      const int64_t experts = c.n(0), k = c.n(1), groups = c.n(2), kept = c.n(3);
      c.need(k <= experts && groups <= experts && experts % groups == 0 && kept <= groups &&
                 k <= experts / groups * kept,
             "routes to more experts than there are");
      c.need(op.n[4] == MOELA_SCORE_SOFTMAX || op.n[4] == MOELA_SCORE_SIGMOID, "unknown scoring");
      c.need(op.n[5] >= MOELA_GROUP_NONE && op.n[5] <= MOELA_GROUP_TOP2_SUM, "unknown group score");
      c.need(op.n[5] != MOELA_GROUP_TOP2_SUM || experts / groups >= 2,
             "the sum of the top two needs two experts a group");
      c.in(0, experts);
      c.out(0, k, MOELA_I32);
      c.out(1, k);
      if (op.weight[0] != -1) {
        c.need(c.weight(0, 1, 1, experts).dtype == MOELA_F32, "the router's bias is f32");
      }
      break;
    }
    case MOELA_OP_MOE_PLAN:
      c.in(0, c.n(1), MOELA_I32);
      c.out(0, c.n(1), MOELA_I32, c.n(0) + 1);
      c.need(c.n(1) * program.desc.max_rows <= INT32_MAX, "a plan has too many slots");
      break;
    case MOELA_OP_GATE_UP: {
      const int64_t intermediate = c.n(0), d = c.n(1), k = c.n(2), experts = c.n(3);
      c.in(0, d);
      c.out(0, k * intermediate);
      if (op.in[1] == -1) {
        c.need(k == 1 && experts == 1, "without a plan there is one expert");
      } else {
        c.plan(experts, k, program.ops);
      }
      c.matrix(0, experts, intermediate, d);
      c.matrix(1, experts, intermediate, d);
      c.need(weights[op.weight[0]]->dtype == weights[op.weight[1]]->dtype,
             "gate and up are of two types");
      break;
    }
    case MOELA_OP_EXPERT_DOWN: {
      const int64_t d = c.n(0), intermediate = c.n(1), k = c.n(2), experts = c.n(3);
      c.in(0, k * intermediate);
      c.plan(experts, k, program.ops);
      c.out(0, k * d);
      c.matrix(0, experts, d, intermediate);
      break;
    }
    case MOELA_OP_COMBINE:
      c.in(0, c.n(1) * c.n(0));
      c.in(1, c.n(1));
      c.maybe_in(2, c.n(0));
      c.in(3, c.n(0));
      c.out(0, c.n(0));
      break;
    case MOELA_OP_GATHER:
      only(MOELA_ROWS_LOGITS, "gathers logits rows");
      c.in(0, c.n(0));
      c.need(program.values[op.in[0]].value.rows != MOELA_ROWS_LOGITS, "gathers from all rows");
      c.out(0, c.n(0));
      break;
    case MOELA_OP_LOGITS_OUT:
    case MOELA_OP_LOGPROB:
    case MOELA_OP_SAMPLE:
      only(MOELA_ROWS_LOGITS, "works on logits rows");
      c.in(0, c.n(0));
      vocabulary(program, c, c.n(0));
      if (op.kind == MOELA_OP_SAMPLE) program.samples = true;
      break;
    default:
      c.fail("unknown kind");
  }
  for (int32_t out : op.out) {
    if (out >= 0 && !in_place) program.values[out].producer = index;
  }
}

// First and last operation that needs each value; kept values and those crossing into the looped
// tail live to the end.
struct Life {
  int32_t begin = INT32_MAX;
  int32_t end = -1;
};

std::vector<Life> lifetimes(const Program& program) {
  const int32_t n_ops = static_cast<int32_t>(program.ops.size());
  std::vector<Life> lives(program.values.size());
  const auto use = [&](int32_t id, int32_t op) {
    if (id < 0) return;
    Life& life = lives[id];
    life.begin = std::min(life.begin, op);
    life.end = std::max(life.end, op >= program.tail && life.begin < program.tail ? n_ops : op);
  };
  for (int32_t i = 0; i < n_ops; i++) {
    for (int32_t id : program.ops[i].in) use(id, i);
    // A device may do the shared experts, which come next, at once with these.
    if (program.ops[i].kind == MOELA_OP_EXPERT_DOWN && i + 2 < program.tail) {
      for (int32_t id : program.ops[i].in) use(id, i + 2);
    }
    for (int32_t id : program.ops[i].out) use(id, i);
  }
  for (size_t id = 0; id < lives.size(); id++) {
    if (program.values[id].value.keep) lives[id] = {-1, n_ops};
  }
  return lives;
}

// Each value gets the lowest place free during its life: first fit in order of birth.
int64_t place(Program& program) {
  const auto lives = lifetimes(program);
  std::vector<int32_t> order;
  for (size_t id = 0; id < lives.size(); id++) {
    if (lives[id].end >= 0) order.push_back(static_cast<int32_t>(id));
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return lives[a].begin < lives[b].begin; });
  const auto bytes = [&](int32_t id) {
    return (program.values[id].elements * 4 + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  };
  int64_t total = 0;
  std::vector<int32_t> placed;  // sorted by offset
  for (int32_t id : order) {
    int64_t offset = 0;
    for (int32_t other : placed) {
      if (lives[other].end < lives[id].begin) continue;
      if (offset + bytes(id) <= program.values[other].offset) break;
      offset = std::max(offset, program.values[other].offset + bytes(other));
    }
    require(offset + bytes(id) <= MAX_WORKSPACE, "the values are larger than any memory");
    program.values[id].offset = offset;
    total = std::max(total, offset + bytes(id));
    placed.insert(std::upper_bound(placed.begin(), placed.end(), id,
                                   [&](int32_t a, int32_t b) {
                                     return program.values[a].offset < program.values[b].offset;
                                   }),
                  id);
  }
  return total;
}

}  // namespace

Program plan_program(const moela_program_desc& desc, const moela_value* values, const moela_op* ops,
                     const std::vector<const Weight*>& weights) {
  require(desc.max_rows > 0 && desc.max_rows <= MAX_ROWS, "max_rows is out of range");
  require(desc.max_logits > 0 && desc.max_logits <= desc.max_rows, "max_logits is out of range");
  require(desc.n_values >= 0 && desc.n_values <= MAX_ENTRIES && desc.n_ops > 0 &&
              desc.n_ops <= MAX_ENTRIES,
          "a program has no operations, or too many");
  Program program;
  program.desc = desc;
  for (int32_t i = 0; i < desc.n_values; i++) {
    const moela_value& value = values[i];
    require(value.dtype == MOELA_F32 || value.dtype == MOELA_I32, "values are f32 or i32");
    require(
        value.cols > 0 && value.cols <= INT32_MAX && value.extra >= 0 && value.extra <= INT32_MAX,
        "a value's width is out of range");
    const int64_t rows = value.rows == MOELA_ROWS_LOGITS ? desc.max_logits : desc.max_rows;
    program.values.push_back({value, rows * value.cols + value.extra, 0, -1});
  }
  program.ops.assign(ops, ops + desc.n_ops);
  program.tail = desc.n_ops;
  for (int32_t i = 0; i < desc.n_ops; i++) {
    const bool logits = ops[i].rows == MOELA_ROWS_LOGITS;
    if (logits && program.tail == desc.n_ops) program.tail = i;
    require(logits || i < program.tail, "operations over logits rows come last");
    check_op(program, ops[i], i, weights);
  }
  program.workspace_bytes = place(program);
  return program;
}

}  // namespace moela
