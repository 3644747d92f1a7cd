// A model on a GPU: its weights there, what a step needs beside the workspace, and how programs are
// replayed.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <memory>
#include <vector>

#include "cuda/ops.h"
#include "cuda/runtime_device.h"
#include "runtime/backend.h"
#include "runtime/model.h"

namespace moela::cuda {

// Rows of a step whose launches may be recorded, and of a call of several steps.
constexpr int DECODE_CAPACITY = 256;
// Among buckets of rows, the one row whose layers are one launch.
constexpr int32_t PERSISTENT = 0;
// Steps of one call that recorded launches can remember the tokens of.
constexpr int DRAWN_STRIDE = 1024;
constexpr int MAX_POOLS = 64;

// What the GPU tells the host after each step of several: a ring of reports in the host's memory.
constexpr int REPORTS = 16;
enum { REPORT_STEP = 0, REPORT_ENTRIES = 1, REPORT_ROWS = 2, REPORT_WORDS = 16 };

struct StepState {
  int32_t entries;  // written so far in this call
  int32_t step;
  int32_t* host_entries;  // where they go, in the host's memory
};

// What happens between two steps of a call: see advance_kernel.
struct Advance {
  Counts* counts;  // [n_blocks], of each block of logits rows
  int32_t n_blocks;
  int32_t block_rows;
  int32_t* tokens;
  int32_t* positions;
  moela_segment* segments;
  moela_sampling* samplings;
  int32_t* original;  // row of the call's first step that a row comes from
  int32_t* drawn;
  int32_t drawn_stride;
  int32_t* n_drawn;
  int32_t* entries;
  int32_t entry_words;
  StepState* state;
  int32_t* report;
};
void advance(const Launch&, const Advance&);

// Fills `count` elements (F32 or BF16) as moela_generate does from element 0.
void generate_weight(uint64_t seed, uint64_t key, int64_t count, float mean, float deviation,
                     int32_t dtype, void* out, cudaStream_t stream);

// A matrix of F32 or BF16 to FP8, INT8 or INT4, with the same result as on the host.
void quantize_weight(int32_t stored, const void* from, int64_t rows, int64_t cols, int32_t dtype,
                     void* data, void* scales, cudaStream_t stream);

// A step's arrays for at most `rows` rows, one block in the GPU's memory and its copy on the host.
struct Inputs {
  explicit Inputs(int64_t rows);
  int64_t rows;
  // Offsets in bytes.
  int64_t state, n_drawn, counts, tokens, positions, row_segment, segments, logit_rows, targets,
      samplings, original, bytes;
  std::unique_ptr<CudaMemory> memory;
  template <class T>
  T* at(int64_t offset) const {
    return reinterpret_cast<T*>(memory->data() + offset);
  }
};

// Recorded launches of a decode program for at most so many rows.
struct Recorded {
  cudaGraphExec_t layers = nullptr;
  cudaGraphExec_t step = nullptr;       // layers and tail
  cudaGraphExec_t advancing = nullptr;  // layers, tail, and what prepares the next step
  void destroy();
};

struct PersistentPlan;

// A program as this GPU runs it.
struct Prepared {
  std::vector<int32_t> dtypes;  // of values: BF16 where only products read them
  std::vector<int64_t>
      twins;  // of values: where in CudaBackend::twins they are in BF16, too; or -1
  bool recordable = false;
  std::map<int32_t, Recorded> recorded;  // by bucket of rows; PERSISTENT: one row, one launch
  // How the layers run in one launch at one row: NULL if they cannot, or nobody has asked yet.
  std::shared_ptr<PersistentPlan> persistent;
  bool planned = false;
  const char* workspace = nullptr;  // where the recorded launches expect it
};

class CudaBackend : public Backend {
 public:
  CudaBackend(moela_model& model, CudaDevice& device);
  ~CudaBackend() override;

  void check_alive() override;
  bool make_weight(const moela_weight_desc& desc, const moela_weight_part* parts,
                   StoredWeight& weight, int32_t* control) override;
  void hold_weight(StoredWeight& weight, int32_t* control) override;
  void pool_added(const moela::Pool& pool) override;
  void run(const Program& program, const StepArguments& arguments, Control& control) override;

  // Of use to runtime_step.cc and runtime_execute.cc.
  moela_model& model;
  CudaDevice& device;
  cudaStream_t stream = nullptr;
  std::vector<Prepared> prepared;  // by program
  std::vector<Weight> weights;     // by id
  std::unique_ptr<Inputs> small, large;
  // Fixed addresses, memory as it is needed.
  CudaRange pages, aux, entries, drawn, logprobs, decode_scratch, prefill_scratch, scratch, fused,
      twins;
  CudaMemory pools;
  Pinned staging, host_entries, report;
  cudaEvent_t windows[4] = {};

  Prepared& prepare(int32_t program);
  const Inputs& inputs_for(int64_t rows);

 private:
  std::unique_ptr<DeviceMemory> weight_memory(uint64_t bytes);
  void allocate_weight(StoredWeight& weight, int64_t count);
  void drop_recorded(Prepared& prepared);

  // All weights lie in one range, one after another: a product of two matrices (wgmma.h) reads both
  // through one map, which spans a TB at most. Memory of their own could lie anywhere.
  std::shared_ptr<CudaRange> weight_range_;
  uint64_t weights_end_ = 0;
  Pinned upload_[2];
  cudaEvent_t uploaded_[2] = {};
  bool lost_ = false;
};

// Bytes of a part of a weight and of its scales.
int64_t weight_bytes(int32_t dtype, int64_t rows, int64_t cols);
int64_t weight_scale_bytes(int32_t dtype, int64_t rows, int64_t cols);

// Where an operation reads and writes beside its values.
struct Place {
  Launch launch;   // but for bucket and scratch
  int32_t rows;    // of the step at most
  int32_t logits;  // of the block of logits rows at most
  Outputs outputs;
  float* host_logits;  // the block's, or NULL
};

// Whether a product with such a weight rounds its input to bf16.
inline bool rounds_inputs(const Weight& weight) {
  return weight.dtype == MOELA_BF16 || weight.dtype == MOELA_FP8;
}

// The first input of a product, in BF16 where it is there and the product rounds in any case.
Tensor product_input(const CudaBackend& backend, const Program& program, const Prepared& prepared,
                     const moela_op& op);

// Launches operation `index` of a program.
void execute(CudaBackend& backend, const Program& program, const Prepared& prepared, int32_t index,
             const Place& place);

}  // namespace moela::cuda
