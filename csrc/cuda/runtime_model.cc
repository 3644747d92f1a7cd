#include "cuda/runtime_model.h"

#include <algorithm>

#include "cuda/fuse.h"
#include "cuda/fuse_mixed.h"
#include "cuda/launch.h"
#include "cuda/mla_decode_plan.h"
#include "cuda/mla_prefill_plan.h"
#include "cuda/runtime_run.h"
#include "cuda/scratch.h"
#include "cuda/wgmma.h"
#include "runtime/error.h"

namespace moela::cuda {
namespace {

// Addresses are free; these are more than any step needs.
constexpr uint64_t MANY = uint64_t{1} << 33;
// Splits of mla_decode in flight: several for each multiprocessor.
constexpr int64_t DECODE_SPLITS = 512;
// For the operations that want little.
constexpr uint64_t SCRATCH = uint64_t{4} << 20;

}  // namespace

Inputs::Inputs(int64_t rows) : rows(rows) {
  int64_t end = 0;
  const auto take = [&](int64_t size) {
    const int64_t begin = end;
    end += (size + 255) / 256 * 256;
    return begin;
  };
  state = take(sizeof(StepState));
  n_drawn = take(4);
  counts = take(rows * sizeof(Counts));
  tokens = take(rows * 4);
  positions = take(rows * 4);
  row_segment = take(rows * 4);
  segments = take(rows * sizeof(moela_segment));
  logit_rows = take(rows * 4);
  targets = take(rows * 4);
  original = take(rows * 4);
  samplings = take(rows * sizeof(moela_sampling));
  bytes = end;
}

void Recorded::destroy() {
  for (cudaGraphExec_t graph : {layers, step, advancing}) {
    if (graph) cudaGraphExecDestroy(graph);
  }
  layers = step = advancing = nullptr;
}

CudaBackend::CudaBackend(moela_model& model, CudaDevice& device)
    : model(model),
      device((device.select(), device)),
      pages(device.index, MANY, "page tables of a step", true),
      aux(device.index, MANY, "what a step draws by", true),
      entries(device.index, MANY, "tokens drawn", true),
      drawn(device.index, MANY, "tokens drawn", true),
      logprobs(device.index, MANY, "log-probabilities", true),
      decode_scratch(device.index, MANY * 4, "scratch memory of attention"),
      prefill_scratch(device.index, MANY * 4, "scratch memory of attention"),
      scratch(device.index, MANY, "scratch memory", true),
      fused(device.index, MANY, "scratch memory", true),
      twins(device.index, MANY, "scratch memory", true),
      pools(device.index, MAX_POOLS * sizeof(PagePool), "the pools' list") {
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  for (cudaEvent_t& event : windows) {
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
  }
  for (cudaEvent_t& event : uploaded_) {
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
  }
  report.need(REPORTS * REPORT_WORDS * 4);
  scratch.grow(SCRATCH);
}

CudaBackend::~CudaBackend() {
  cudaSetDevice(device.index);
  if (stream) cudaStreamSynchronize(stream);
  for (Prepared& program : prepared) drop_recorded(program);
  for (cudaEvent_t event : windows) {
    if (event) cudaEventDestroy(event);
  }
  for (cudaEvent_t event : uploaded_) {
    if (event) cudaEventDestroy(event);
  }
  if (stream) cudaStreamDestroy(stream);
  cudaGetLastError();
}

void CudaBackend::check_alive() {
  if (lost_) throw Error(MOELA_ERR_DEVICE, "the GPU has failed, and the model is lost");
  device.select();
}

void CudaBackend::pool_added(const moela::Pool& pool) {
  const size_t id = model.pools.size() - 1;
  require(id < MAX_POOLS, "a model has at most 64 pools on a GPU");
  const moela::PagePool& view = pool.view;
  const PagePool mine = {
      view.dtype,       view.layers,        view.kv_lora_rank, view.qk_rope_head_dim,
      view.row_bytes(), view.layer_bytes(), view.page_bytes(), view.base};
  device.copy_in(reinterpret_cast<PagePool*>(pools.data()) + id, &mine, sizeof mine);
}

void CudaBackend::drop_recorded(Prepared& program) {
  for (auto& [bucket, recorded] : program.recorded) recorded.destroy();
  program.recorded.clear();
  program.persistent.reset();
  program.planned = false;
}

const Inputs& CudaBackend::inputs_for(int64_t rows) {
  std::unique_ptr<Inputs>& inputs = rows <= DECODE_CAPACITY ? small : large;
  if (!inputs || inputs->rows < rows) {
    auto made = std::make_unique<Inputs>(std::max<int64_t>(rows, DECODE_CAPACITY));
    made->memory = std::make_unique<CudaMemory>(device.index, made->bytes, "a step's rows");
    inputs = std::move(made);
  }
  return *inputs;
}

namespace {

bool is_product(const moela_op& op) {
  return op.kind == MOELA_OP_LINEAR || op.kind == MOELA_OP_GATE_UP ||
         op.kind == MOELA_OP_EXPERT_DOWN;
}

// Whether an operation takes its first input as PROJECTED_BF16. Of a rotary only its own product's
// output may be that, and of an experts' product only what a sum reads.
bool reads_projected_bf16(const Program& program, int32_t index, const std::vector<Weight>& weights,
                          bool hopper) {
  const moela_op& op = program.ops[index];
  const int32_t by = program.ops[program.values[op.in[0]].producer].kind;
  if (op.kind == MOELA_OP_COMBINE) return by == MOELA_OP_EXPERT_DOWN;
  if (by != MOELA_OP_LINEAR) return false;
  int32_t product;
  if (op.kind == MOELA_OP_ROTARY) return rotates_product(program, weights, hopper, index, product);
  if (op.kind == MOELA_OP_MLA_ABSORB) return true;
  return op.kind == MOELA_OP_MLA_PREFILL &&
         mla_prefill_fast(hopper, weights[op.weight[0]], op.n[2], op.n[3], op.n[4], op.n[5]);
}

// F32 everywhere but where the only readers are products that round to bf16 anyway. On Hopper the
// projected rows of two more values, which are large: queries, which attention there rounds, and
// experts' outputs.
std::vector<int32_t> value_dtypes(const Program& program, const std::vector<Weight>& weights,
                                  bool hopper) {
  std::vector<int32_t> dtypes;
  Launch at{};
  at.hopper = hopper;
  for (const PlannedValue& value : program.values) {
    const bool made = value.producer >= 0 && !value.value.keep;
    int32_t dtype = value.value.dtype;
    if (made && dtype == MOELA_F32) {
      const moela_op& op = program.ops[value.producer];
      const int32_t kind = op.kind;
      if (kind == MOELA_OP_RMS_NORM || kind == MOELA_OP_GATE_UP || kind == MOELA_OP_MLA_EXPAND ||
          kind == MOELA_OP_MLA_PREFILL) {
        dtype = MOELA_BF16;
      } else if (kind == MOELA_OP_EXPERT_DOWN && program.has_projected &&
                 wgmma_takes(at, weights[op.weight[0]])) {
        dtype = PROJECTED_BF16;
      }
    }
    dtypes.push_back(dtype);
  }
  for (int32_t i = 0; i < static_cast<int32_t>(program.ops.size()); i++) {
    int32_t product;
    if (!program.has_projected || !rotates_product(program, weights, hopper, i, product)) continue;
    const int32_t id = program.ops[i].out[0];
    if (!program.values[id].value.keep) dtypes[id] = PROJECTED_BF16;
  }
  for (int32_t index = 0; index < static_cast<int32_t>(program.ops.size()); index++) {
    const moela_op& op = program.ops[index];
    for (int i = 0; i < 4; i++) {
      const int32_t id = op.in[i];
      if (id < 0) continue;
      if (dtypes[id] == PROJECTED_BF16 &&
          !(i == 0 && reads_projected_bf16(program, index, weights, hopper))) {
        dtypes[id] = MOELA_F32;
      }
      if (dtypes[id] != MOELA_BF16) continue;
      if (i != 0 || !is_product(op) || !rounds_inputs(weights[op.weight[0]]))
        dtypes[id] = MOELA_F32;
    }
  }
  return dtypes;
}

// Norms that some products take in F32 (the router's, for one) and others round get a second place
// for their BF16; places are used again when nobody reads them any more.
std::vector<int64_t> value_twins(const Program& program, const std::vector<Weight>& weights,
                                 const std::vector<int32_t>& dtypes, int64_t& bytes) {
  const size_t count = program.values.size();
  std::vector<int64_t> twins(count, -1);
  std::vector<int32_t> last(count, -1);
  for (int32_t i = 0; i < program.tail; i++) {
    const moela_op& op = program.ops[i];
    if (op.in[0] >= 0 && is_product(op) && rounds_inputs(weights[op.weight[0]])) last[op.in[0]] = i;
  }
  struct Place {
    int64_t begin, bytes;
    int32_t end;  // its value's last reader
  };
  std::vector<Place> places;
  for (int32_t i = 0; i < program.tail; i++) {
    const moela_op& op = program.ops[i];
    const int32_t id = op.out[0];
    if (op.kind != MOELA_OP_RMS_NORM || dtypes[id] != MOELA_F32 || last[id] < i) continue;
    const int64_t size = (program.values[id].elements * 2 + 255) / 256 * 256;
    auto place = std::find_if(places.begin(), places.end(),
                              [&](const Place& old) { return old.end < i && old.bytes >= size; });
    if (place == places.end()) {
      places.push_back({bytes, size, i});
      bytes += size;
      place = places.end() - 1;
    }
    place->end = last[id];
    twins[id] = place->begin;
  }
  return twins;
}

// Of an operation's product, where its input must be quantized; launches are sized for a power of
// two of rows.
int64_t product_scratch(const moela_op& op, const moela_program_desc& desc,
                        const std::vector<Weight>& weights) {
  if (!is_product(op)) return 0;
  const int32_t dtype = weights[op.weight[0]].dtype;
  if (dtype != MOELA_INT8 && dtype != MOELA_INT4) return 0;
  int64_t rows = 1;
  while (rows < (op.rows == MOELA_ROWS_LOGITS ? desc.max_logits : desc.max_rows)) rows *= 2;
  return quantized_scratch(op.kind == MOELA_OP_EXPERT_DOWN ? rows * op.n[2] : rows, op.n[1]);
}

}  // namespace

Prepared& CudaBackend::prepare(int32_t id) {
  for (size_t i = weights.size(); i < model.weights.size(); i++) {
    const StoredWeight& stored = model.weights[i];
    const auto& view = stored.view;
    weights.push_back({view.dtype, static_cast<int32_t>(view.parts.size()), view.rows, view.cols,
                       static_cast<const char*>(view.parts[0]), stored.part_bytes,
                       view.scales.empty() ? nullptr : static_cast<const char*>(view.scales[0]),
                       stored.scale_part_bytes});
  }
  if (static_cast<size_t>(id) >= prepared.size()) prepared.resize(id + 1);
  Prepared& mine = prepared[id];
  const Program& program = model.programs[id];
  if (mine.dtypes.empty() && !program.values.empty()) {
    mine.dtypes = value_dtypes(program, weights, device.hopper);
    int64_t twin_bytes = 0;
    mine.twins = value_twins(program, weights, mine.dtypes, twin_bytes);
    twins.grow(twin_bytes);
    const bool keeps = std::any_of(program.values.begin(), program.values.end(),
                                   [](const PlannedValue& value) { return value.value.keep != 0; });
    mine.recordable = !program.has_projected && program.kv_lora_rank > 0 && !keeps &&
                      program.desc.max_rows <= DECODE_CAPACITY;
    fused.grow(fused_bytes(program));
    for (const moela_op& op : program.ops) {
      if (op.kind == MOELA_OP_MLA_DECODE) {
        decode_scratch.grow(mla_slots_bytes(DECODE_SPLITS, op.n[1], MLA_HEAD_TILE, op.n[2]));
      } else if (op.kind == MOELA_OP_MLA_PREFILL) {
        const MlaPrefillShape shape = {op.n[1], op.n[2], op.n[3], op.n[4], op.n[5]};
        const bool fast = device.hopper && weights[op.weight[0]].dtype != MOELA_F32;
        prefill_scratch.grow(std::max(mla_prefill_scratch(shape, program.desc.max_rows, false),
                                      mla_prefill_scratch(shape, program.desc.max_rows, fast)));
      } else if (const int64_t bytes = product_scratch(op, program.desc, weights)) {
        scratch.grow(bytes);
      } else if (op.kind == MOELA_OP_SAMPLE || op.kind == MOELA_OP_LOGPROB) {
        scratch.grow(std::max(sample_scratch(op.n[0], program.desc.max_logits),
                              logprob_scratch(op.n[0], program.desc.max_logits)));
      }
    }
  }
  // The workspace moves when a larger program is added.
  const char* workspace = model.workspace ? model.workspace->data() : nullptr;
  if (mine.workspace != workspace) {
    drop_recorded(mine);
    mine.workspace = workspace;
  }
  return mine;
}

void CudaBackend::run(const Program& program, const StepArguments& arguments, Control& control) {
  check_alive();
  try {
    Run(*this, program, arguments, control).run();
  } catch (...) {
    // Nothing of this call may still be under way; an error that stays is the context's end.
    const cudaError_t error = cudaStreamSynchronize(stream);
    cudaGetLastError();
    if (error != cudaSuccess && cudaStreamSynchronize(stream) != cudaSuccess) lost_ = true;
    throw;
  }
}

}  // namespace moela::cuda
