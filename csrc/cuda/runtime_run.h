// One call of moela_model_run on a GPU.
#pragma once

#include "cuda/runtime_model.h"

namespace moela::cuda {

class Run {
 public:
  Run(CudaBackend& backend, const Program& program, const StepArguments& arguments,
      Control& control);
  void run();

 private:
  void send_inputs();
  void fill_rows(char* host);
  void once();
  void several();
  void layers();
  void tail();
  void whole_step(bool advancing);
  void record(cudaGraphExec_t& graph, bool with_tail, bool advancing);
  void replay(cudaGraphExec_t graph);
  void advance_step();
  void operations(int32_t begin, int32_t end, const Place& place);
  Place place() const;
  Place tail_place(int32_t block) const;
  int32_t blocks() const;
  bool cancelled() const;
  void find_persistent();
  Recorded& recorded();
  void throw_if_cancelled() const;
  void send_aux();
  void receive_entries(int64_t count);
  // Waits for the report of step `step`; [1] and [2] of it.
  void wait_report(int32_t step, int32_t& entries, int32_t& rows) const;

  CudaBackend& backend_;
  const Program& program_;
  const StepArguments& a_;
  Control& control_;
  Prepared& prepared_;
  const Inputs& inputs_;
  // Of one row whose layers run in one launch, or NULL.
  PersistentPlan* persistent_ = nullptr;
  // Rows, and logits rows, that launches are sized for.
  int32_t bucket_ = 0, logits_ = 0;
  bool recorded_ = false;       // the layers are replayed from recorded launches
  bool tail_recorded_ = false;  // the operations over logits rows, too
  bool recording_ = false;
  int32_t absorbed_ = 0;
  int64_t context_ = 0, projected_keys_ = 0;
  int32_t drawn_stride_ = 0;
  int32_t entry_words_ = 0;
};

}  // namespace moela::cuda
